"""Every mistake in a configuration is named, with its remedy."""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_odml.config.stream import (
    ConfigError,
    StreamConfig,
    example_yaml,
    load_config,
    parse_config,
    schema_json,
)
from stream_odml.learn.settings import METHODS, RENAMED, StageSettings


def test_the_printed_example_is_the_defaults() -> None:
    assert parse_config(yaml.safe_load(example_yaml())) == StreamConfig()


def test_every_field_of_the_example_is_described() -> None:
    lines = example_yaml().splitlines()
    undescribed = [
        line
        for before, line in pairwise(lines)
        if line.strip() and not line.lstrip().startswith("#") and not before.lstrip().startswith("# ")
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sede": 1}, "sede: unknown key; did you mean `seed`?"),
        ({"learning": {"weight_od": 1}}, "learning.weight_od: unknown key; did you mean `weight_old`?"),
        ({"service": {"prot": 1}}, "did you mean `port`?"),
        ({"learning": {"temperature": 0}}, "temperature: 0"),
        ({"cluster": {"workers": 0}}, "cluster.workers: Input should be greater than or equal to 1 (got 0)"),
        ({"boundary": {"images": -5}}, "boundary.images is -5"),
        ({"model": {"backbone": "conv4", "pretrained": True}}, "name a file in `weights`"),
        (
            {"model": {"backbone": "none", "head": "discriminant"}, "learning": {"trunk": "distilled"}},
            "without a trunk",
        ),
        ({"method": "distilled", "store": {"features": "exact"}}, "leave store.features out"),
        ({"model": {"head": "discriminant"}, "store": {"features": "embedding"}}, "needs `exact`"),
        ({"method": "distilled", "learning": {"trunk": "frozen"}}, "method: frozen_f0"),
        ({"method": "distilled", "model": {"lift": 64}}, "only `head: discriminant` takes them"),
        ({"method": "best"}, "'ours'"),
        ({"model": {"image_size": 100_000}}, "expected at least 8 and under 4097"),
        (
            {"source": {"kind": "s3", "path": ""}},
            "path is empty; say what of s3 is read, or name `kind: none`",
        ),
        ({"name": "no spaces"}, "name"),
        ({"learning": 7}, "learning"),
    ],
)
def test_mistakes_are_named(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(data)
    assert words in str(error.value)


def test_all_mistakes_come_at_once() -> None:
    with pytest.raises(ConfigError, match=r"2 mistake\(s\)"):
        parse_config({"seed": -1, "cluster": {"workers": 0}})


def test_a_method_sets_what_the_user_does_not() -> None:
    config = parse_config({"method": "faithful", "learning": {"weight_old": 3}})
    assert (config.learning.metric_loss, config.learning.weight_old) == ("hard_pairs", 3)


def test_the_head_is_that_of_the_method_unless_the_user_says_otherwise() -> None:
    assert parse_config({"model": {"dim": 8}, "method": "ours"}).model.head == "discriminant"
    assert parse_config({"method": "ours"}).solves_head
    for method in set(METHODS) - {"ours"}:
        assert parse_config({"method": method, "model": {"dim": 8}}).model.head == "linear"
    assert StreamConfig() == parse_config({}) == parse_config({"method": "ours"})
    assert parse_config({"method": "faithful", "model": {"head": "discriminant"}}).solves_head
    assert not parse_config({"method": "ours", "model": {"head": "linear"}}).solves_head
    solved = parse_config({"method": "ours"})
    assert StreamConfig.model_validate_json(solved.model_dump_json()) == solved
    assert solved.learning == parse_config({}).learning


def test_pretrained_weights_are_learnt_on_at_a_lower_rate_unless_the_user_says_otherwise() -> None:
    model = {"backbone": "mobilenetv2", "weights": "w.safetensors"}
    assert parse_config({"model": model}).learning.base_learning_rate == 3e-4
    asked = parse_config({"model": model, "learning": {"base_learning_rate": 1e-2}}).learning
    assert (asked.base_learning_rate, asked.learning_rate) == (1e-2, 1e-4)
    assert parse_config({}).learning.base_learning_rate == 1e-3


@pytest.mark.parametrize("text", ["- a\n- b\n", "{", "seed: [1", "\x00"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "service: {port: 0777}",
            "column 17: a number in base 60, or one that begins with 0, which is octal",
        ),
        ("service: {port: 80:00}", "write it plainly, or in quotes"),
        ("source: {poll_s: 1:30.5}", "a number in base 60"),
        ("seed: " + "9" * 5000, "a number of 5000 digits; expected 1000 at most"),
        ("a: " + "[" * 5000 + "]" * 5000, "is not YAML: it is nested too deeply"),
        (
            "model: {dim: yes}\nsource: {poll_s: on}",
            r"model.dim: Input should be a number \(got True\)\n  source.poll_s",
        ),
    ],
)
def test_what_yaml_takes_for_something_else_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "section",
    [name for name, f in StreamConfig.model_fields.items() if f.annotation is not str and name != "seed"],
)
def test_a_section_of_which_all_is_commented_out_has_its_defaults(tmp_path: Path, section: str) -> None:
    (tmp_path / "c.yaml").write_text(f"root: r\n{section}:\n  # nothing\n")
    assert load_config(tmp_path / "c.yaml") == StreamConfig(root="r")
    (tmp_path / "c.yaml").write_text("root:\n")
    with pytest.raises(ConfigError, match="root"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("root", ["s3://", "s3:///"])
def test_an_object_store_without_a_bucket_is_no_root(root: str) -> None:
    with pytest.raises(ConfigError, match="names no bucket; write s3://BUCKET/PREFIX"):
        parse_config({"root": root})


@pytest.mark.parametrize("port", ["0", "8000", "0x1F90", "8_000", "'8000'", "+8000"])
def test_numbers_as_people_write_them(tmp_path: Path, port: str) -> None:
    (tmp_path / "c.yaml").write_text(f"service: {{port: {port}}}\ngate: {{certainty: 1.5e+0}}\ncluster: {{}}")
    assert load_config(tmp_path / "c.yaml").service.port in (0, 8000, 0x1F90)


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name an existing YAML file"):
        load_config(tmp_path / "none.yaml")


def test_overrides_reach_into_sections(tmp_path: Path) -> None:
    path = tmp_path / "stream.yaml"
    path.write_text("cluster:\n  workers: 4\n")
    config = load_config(path, {"cluster": {"address": "auto"}})
    assert (config.cluster.workers, config.cluster.address) == (4, "auto")


def test_the_schema_names_every_section() -> None:
    assert all(f'"{name}"' in schema_json() for name in StreamConfig.model_fields)


def test_every_number_of_the_example_shows_its_range() -> None:
    lines = example_yaml().splitlines()
    bare = [
        line
        for before, line in pairwise(lines)
        if re.fullmatch(r" *\w+: -?[\d.e+]+", line) and not re.search(r"\([<>]", before)
    ]
    assert bare == []


def test_what_the_example_shows_is_what_is_checked() -> None:
    """Each lower bound of `learning` is refused just below, and nothing is refused that the schema allows."""
    properties = StreamConfig.model_json_schema()["$defs"]["StageSettings"]["properties"]
    for name, spec in properties.items():
        options = [spec, *spec.get("anyOf", [])]
        least = next((o["minimum"] for o in options if "minimum" in o), None)
        above = next((o["exclusiveMinimum"] for o in options if "exclusiveMinimum" in o), None)
        if least is not None:
            assert getattr(parse_config({"learning": {name: least}}).learning, name) == least
            with pytest.raises(ConfigError, match=name):
                parse_config({"learning": {name: least - 1}})
        if above is not None:
            with pytest.raises(ConfigError, match=name):
                parse_config({"learning": {name: above}})


def test_every_method_can_be_configured() -> None:
    for method in METHODS:
        assert parse_config({"method": method}).method == method


def test_earlier_names_are_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    old = {"method": "no_wide", "learning": {"weight_anchor": 2, "wide_every": 3}}
    new = {"method": "no_composites", "learning": {"weight_distill": 2, "composite_every": 3}}
    assert parse_config(old) == parse_config(new)
    assert {message.split()[0] for message in caplog.messages} == {
        "method:", "learning.weight_anchor", "learning.wide_every",
    }  # fmt: skip
    assert {*RENAMED.values()} <= {field.name for field in dataclasses.fields(StageSettings)}


def test_an_earlier_name_beside_the_new_one_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"weight_anchor: unknown key; did you mean `weight_distill`"):
        parse_config({"learning": {"weight_anchor": 2, "weight_distill": 3}})


@pytest.mark.parametrize(
    ("model", "trunk", "learns"),
    [
        ({}, "auto", True),
        ({}, "frozen", True),
        ({"backbone": "timm:resnet18", "pretrained": True}, "auto", True),
        ({"backbone": "timm:resnet18", "pretrained": True}, "frozen", False),
    ],
)
def test_a_trunk_from_nothing_is_learnt_once_whatever_is_asked(
    model: dict[str, Any], trunk: str, learns: bool
) -> None:
    config = parse_config({"model": {"head": "discriminant", **model}, "learning": {"trunk": trunk}})
    assert config.solves_head
    assert config.learns_trunk == learns
