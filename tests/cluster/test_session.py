"""What is checked before a stream starts anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stream_odml.cluster import session
from stream_odml.cluster.session import prepare
from stream_odml.config.stream import ConfigError, StreamConfig, parse_config
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.store.store import Store


def config(root: Path, *, method: str = "ours", more: Mapping[str, Any] = {}, **model: Any) -> StreamConfig:
    small = {"dim": 16, "image_size": 16} | model
    ports = {"service": {"port": 0}, "metrics": {"port": 0}, "cluster": {"cpus": 2}}
    return parse_config({"root": str(root), "method": method, "model": small, **ports, **more})


def test_a_root_is_made_once_and_taken_up_again(tmp_path: Path) -> None:
    prepare(config(tmp_path / "root"))
    made = Store.open(str(tmp_path / "root")).tree.head
    prepare(config(tmp_path / "root"))
    assert Store.open(str(tmp_path / "root")).tree.head == made


def test_a_root_under_a_discriminant_head_is_of_features_and_begins_with_a_head_of_nothing(
    tmp_path: Path,
) -> None:
    made = config(tmp_path / "root", lift=32)
    prepare(made)
    prepare(made)
    store = Store.open(str(tmp_path / "root"))
    assert (store.form, store.row_codes, store.dim) == ("exact", "int8", 64)
    assert len(store.tree.versions) == 1
    sums, head = store.sums_of(store.tree.head), store.head_of(store.tree.head)
    assert sums is not None
    assert (len(sums), sums.lift.width) == (0, 32)
    assert head.known_dim == 0
    with pytest.raises(ValueError, match="asked for"):
        prepare(config(tmp_path / "root", method="distilled", dim=64))


def test_the_lift_is_wide_beside_few_features_unless_a_number_is_given(tmp_path: Path) -> None:
    prepare(config(tmp_path / "root"))
    store = Store.open(str(tmp_path / "root"))
    sums = store.sums_of(store.tree.head)
    assert sums is not None
    assert (store.dim, sums.lift.width) == (64, 2048)
    assert EmbedderSpec().lift_of(1280) == 0
    assert EmbedderSpec(head="discriminant", lift=0).lift_of(64) == 0


@pytest.mark.parametrize("head", ["linear", "none"])
def test_a_root_of_embeddings_goes_on_under_the_defaults(
    head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    prepare(config(root, method="distilled", head=head, dim=64))
    made = Store.open(str(root)).tree.head
    with caplog.at_level("INFO"):
        taken_up = prepare(config(root, dim=64))
    assert (taken_up.method, taken_up.model.head, taken_up.solves_head) == ("distilled", head, False)
    assert f"stores embeddings of a {head} head" in caplog.text
    assert taken_up.learning == config(root, method="distilled", head=head).learning
    store = Store.open(str(root))
    assert (store.form, store.dim, store.tree.head) == ("embedding", 64, made)
    assert prepare(config(root, method="faithful", head=head, dim=64)).method == "faithful"
    for more in ({"store": {"features": "exact"}}, {"learning": {"trunk": "frozen"}}):
        with pytest.raises(ConfigError, match="stores embeddings, of which no head can be solved"):
            prepare(config(root, dim=64, more=more))
    with pytest.raises(ConfigError, match=r"image_size 16 \(asked for 32\)"):
        prepare(config(root, image_size=32, dim=64))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"backbone": "mobilenetv2"},
            r"backbone 'conv4' \(asked for 'mobilenetv2'\).*new root on the same inbox",
        ),
        ({"image_size": 32}, r"image_size 16 \(asked for 32\)"),
        ({"dim": 32}, r"dimension 16, asked for embeddings of dimension 32"),
    ],
)
def test_another_model_needs_another_root(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    prepare(config(tmp_path / "root", method="distilled"))
    with pytest.raises((ConfigError, ValueError), match=words):
        prepare(config(tmp_path / "root", method="distilled", **change))
    prepare(
        config(tmp_path / "root", method="distilled")
    )  # nothing was changed, and the lease was given back


def test_in_a_job_a_relative_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="absolute path on storage that every node sees"):
        prepare(config(Path("stream-root")))
    assert not (tmp_path / "stream-root").exists()


@pytest.mark.parametrize(("root", "tries"), [("s3://bucket/root", 3), ("/nowhere/root", 1)])
def test_a_root_on_an_object_store_is_asked_again_and_one_on_a_disk_is_not(
    root: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def breaks_off(config: StreamConfig, takeover: bool) -> None:
        asked.append(config.root)
        raise OSError("Connection reset by peer")

    monkeypatch.setattr(session, "OPENING_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(session, "open_root", breaks_off)
    with pytest.raises(ConfigError, match=r"cannot be used .Connection reset by peer.*make it readable"):
        session._make_root(parse_config({"root": root}), takeover=False)
    assert asked == [root] * tries
