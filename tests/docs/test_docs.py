"""The documentation says what is so: commands and snippets run, the reference is complete, links lead somewhere."""

from __future__ import annotations

import ast
import builtins
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import typer.main
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from stream_odml import __version__
from stream_odml.cli.main import app
from stream_odml.config.service import ServiceOptions
from stream_odml.config.stream import StreamConfig, load_config
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.reasons import REMEDIES, Reason
from stream_odml.learn.mobilenetv2 import MobileNetV2
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from tests.docs.pages import PAGES, REPOSITORY, blocks, commands, hooks
from tests.seams.in_process import in_process
from tests.service.tiny_stream import TinyStream, picture
from tests.sources import PACKAGE, modules

HOOKS = hooks()
EVERY = sorted({(page, line) for page in PAGES for line in commands(page)})
CONFIG = "model: {image_size: 16, dim: 16}\nservice: {port: 0}\nmetrics: {port: 0}\ncluster: {cpus: 4}\n"
NEEDS_A_RUN = ("demo", "run", "query", "submit", "stop")
"""Commands that need a running stream: the slow test of the page on photos runs them."""
RUN_BY_OTHERS = ("howto/python.md", "howto/query-vectors.md", "howto/vectors.md")
"""Pages whose snippets need more of a stream: `tests/notebook`, `tests/service/test_query_vectors.py` and
`tests/exchange/test_page.py` run them."""
COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(("page", "line"), EVERY)
def test_every_command_is_one_that_we_have(page: str, line: str) -> None:
    _, name, *arguments = shlex.split(line.replace("...", "x"))
    COMMANDS[name].make_context(name, arguments)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of: photos, weights, and a root with the class `sku 4711`."""
    for name in ("oak", "elm"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(picture(number + 10 * (name == "elm")))
    save_file(
        {k: v for k, v in MobileNetV2().state_dict().items() if not k.endswith("num_batches_tracked")},
        tmp_path / "mobilenetv2.safetensors",
    )
    stream = TinyStream(tmp_path)
    stream.land("a", ["sku 4711", "oak"])
    land_items(stream.inbox, "b", [NewItem(picture(50), "oak"), NewItem(b"no image", "oak")])
    stream.ingest()
    stream.writer.release()
    (tmp_path / "stream-root").symlink_to(tmp_path / "root")
    (tmp_path / "stream-root" / "inbox").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["howto/photos.md", "howto/erasure.md", "howto/troubleshooting.md"])
def test_the_commands_of_a_page_run_one_after_the_other(page: str, place: Path) -> None:
    """Those that need no running stream. What was made by one is there for the next, as for a reader."""
    for line in (line for block in blocks(page, "bash") for line in block.splitlines()):
        _, name, *arguments = shlex.split(line)
        if name in NEEDS_A_RUN or "photos-stream" in arguments or name == "relearn" or "--inbox" in arguments:
            continue
        if name == "config" and not Path("stream.yaml").exists():
            Path("stream.yaml").write_text(CONFIG)
        if name == "config":
            # The ports of the example may be in use on the machine that runs this.
            text = Path("stream.yaml").read_text()
            Path("stream.yaml").write_text(
                text if "port" in text else f"{text}service: {{port: 0}}\nmetrics: {{port: 0}}\n"
            )
        result = CliRunner().invoke(app, [name, *arguments])
        assert result.exit_code in (0, 1 if "--verify" in arguments else 0), (
            line,
            result.output,
            result.exception,
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), line
    if page == "howto/photos.md":
        assert len(Path("stream.yaml").read_text().splitlines()) < 25
        assert list(Path("photos-stream/inbox").iterdir())


def test_every_configuration_on_a_page_is_one(tmp_path: Path) -> None:
    found = [block for page in PAGES for block in blocks(page, "yaml")]
    assert len(found) >= 2
    for text in found:
        (tmp_path / "stream.yaml").write_text(text)
        load_config(tmp_path / "stream.yaml")


def test_the_python_on_the_pages_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = TinyStream(tmp_path)
    stream.land("a", ["ash", "oak"])
    replica = Replica(stream.root, ServiceOptions(poll_s=0.02, wait_s=30.0, push_dir=str(tmp_path / "in")))
    replica.start()
    real = httpx.Client
    served = create_app(replica, ServiceOptions(), replica.metrics)
    monkeypatch.setattr(httpx, "Client", lambda **more: real(**{**more, "transport": in_process(served)}))
    (tmp_path / "leaf.jpg").write_bytes(picture(0))
    monkeypatch.chdir(tmp_path)
    pages = [page for page in PAGES if page not in RUN_BY_OTHERS]
    snippets = [(page, block) for page in pages for block in blocks(page, "python")]
    assert snippets
    try:
        for page, block in snippets:
            exec(compile(block, page, "exec"), {})
    finally:
        replica.close()
        stream.close()
    said = capsys.readouterr().out.splitlines()
    assert any(line.split()[1] in ("ash", "oak") for line in said)


def test_the_reference_has_every_option_and_every_key() -> None:
    page = HOOKS.commands_page()
    options = {
        f"{name} {o}" for name, c in COMMANDS.items() for p in c.params for o in getattr(p, "opts", ())
    }
    for name, command in COMMANDS.items():
        section = page.split(f"## stream-odml {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            shown = (
                parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper()
            )
            assert shown in section, f"{name} {shown}"
    assert len(options) > 40
    page = HOOKS.configuration_page()
    keys = 0
    for name, field in StreamConfig.model_fields.items():
        inner = [
            *getattr(field.annotation, "model_fields", getattr(field.annotation, "__dataclass_fields__", ()))
        ]
        section = page.split(f"## {name}\n")[1].split("\n## ")[0] if inner else page.split("\n## ")[0]
        for key in [key for key in inner or [name] if not key.startswith("_")]:
            if (name, key) == ("service", "max_pixels"):
                continue  # `ingest.max_pixels` sets it
            keys += 1
            assert f"| `{key}` |" in section, f"{name}.{key}"
    assert keys > 120


def leaves(schema: dict[str, Any], properties: dict[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Section and name of every key of a configuration, however deep."""
    for key, spec in properties.items():
        targets = [one["$ref"] for one in [spec, *spec.get("allOf", [])] if "$ref" in one]
        if targets:
            name = f"{within}.{key}" if within else key
            yield from leaves(schema, schema["$defs"][targets[0].rsplit("/", 1)[1]]["properties"], name)
        else:
            yield within, key


def test_every_key_at_any_depth_has_its_row() -> None:
    page = HOOKS.configuration_page()
    sections = {part.split("\n", 1)[0]: part for part in page.split("\n## ")}
    schema = StreamConfig.model_json_schema()
    found = list(leaves(schema, schema["properties"]))
    assert ("source.kafka", "value") in found
    missing = [
        f"{within}.{key}"
        for within, key in found
        if f"| `{key}` |" not in (sections[within] if within else page.split("\n## ")[0])
    ]
    assert missing == []


NEVER_PRINTED = {
    "Doubt": "a warning of `config --check`, printed as one",
    "ReaderEnded": "read row by row instead",
    "StaleParent": "the stage is learnt again",
    "StaleSums": "the stage is settled again",
    "StageDeferred": "the stage waits, and `status` says for what",
}
"""Errors that end within the package, and how."""


def error_names() -> set[str]:
    """Every class of an error in the package, by the classes that it extends."""
    bases: dict[str, set[str]] = {}
    for _, tree in modules(PACKAGE, "class "):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    known = {
        name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, Exception)
    }
    found: set[str] = set()
    while more := {name for name, of in bases.items() if of & (known | found)} - found:
        found |= more
    return {name for name in found if not name.startswith("_")}


def test_every_error_has_its_name_among_the_troubles() -> None:
    table = PAGES["howto/troubleshooting.md"].split("## Errors by their name")[1]
    named = {
        name
        for row in re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    names = error_names()
    assert len(names) > 40
    assert names - named == set(NEVER_PRINTED)
    assert named <= names


def test_every_path_of_the_api_is_in_the_reference() -> None:
    page = HOOKS.http_page()
    for path, methods in HOOKS.openapi()["paths"].items():
        for method in methods:
            assert f"## {method.upper()} {path}".replace("{", "\\{") in page


def test_every_error_is_listed_and_those_that_are_explained_exist() -> None:
    page = HOOKS.errors_page()
    known = [text for room in HOOKS.ROOMS for _, text in HOOKS.messages(room)]
    assert len(known) > 200
    assert {
        path.name for path in (REPOSITORY / "stream_odml").iterdir() if (path / "__init__.py").exists()
    } <= {*HOOKS.ROOMS}
    for title in [
        line[5:-1] for line in PAGES["howto/troubleshooting.md"].splitlines() if line.startswith("### `")
    ]:
        assert any(title in text for text in known), title
    assert page.count("\n| ") >= len(set(known))


PASSED_ON = {
    "BadShard", "BadImage", "RowError", "type(error)", "KafkaException", "SourceLost", "TransientReadError",
    "_ERRORS[answer['error']]", "StageDeferred", "StageFailed", "CanaryMismatch", "ServiceError",
    "ApiError", "BadParameter", "unprocessable", "ConfigError", "ValueError", "LookupError", "FileNotFoundError",
}  # fmt: skip
"""Errors that are raised again in another's words; those are listed where they come from, or are a library's."""


def test_no_error_with_words_of_its_own_is_left_out_of_the_list() -> None:
    raised = [one for room in HOOKS.ROOMS for one in HOOKS.raised(room)]
    unlisted = [(name, at) for name, text, at in raised if not text]
    assert {name for name, _ in unlisted} <= PASSED_ON
    for _, at in unlisted:
        file, line = at.split(":")
        (node,) = (
            node
            for node in ast.walk(ast.parse((REPOSITORY / "stream_odml" / file).read_text("utf-8")))
            if isinstance(node, ast.Raise) and node.lineno == int(line)
        )
        texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and one.value]
        assert not [text for text in texts if isinstance(text, str) and " " in text.strip(" :;()")], at
    listed = {" ".join(text.split()) for _, text, _ in raised}
    for function in ("unknown", "driver_away", "overloaded"):  # made by a function of another file
        assert any(name == function and text for name, text, _ in raised), function
    assert len(listed) > 550


def test_every_error_of_commands_and_configuration_says_what_to_do() -> None:
    """A remedy stands behind a semicolon, or the sentence itself says what was expected."""
    words = (";", "expected", "say ", "name ", "use ", "set ", "give ", "choose", "must", "only", "unknown")
    texts = [text for room in ("cli", "config") for _, text in HOOKS.messages(room)]
    bare = {text for text in texts if not any(word in text for word in words)}
    # Lists, whose lines have the remedies, and what is told with them.
    assert bare <= {"… has … mistake(s):…", "… is not YAML: …", "Ray's … ended"}


def test_every_reason_for_a_refusal_has_a_remedy() -> None:
    assert set(REMEDIES) == set(Reason)
    page = HOOKS.quarantine_page()
    assert all(f"`{reason.value}`" in page for reason in Reason)


@pytest.mark.slow  # `.ci/run` builds it
@pytest.mark.skipif(
    find_spec("mkdocs") is None, reason="NOT CHECKED: pip install -c constraints.txt -e '.[docs]'"
)
def test_the_site_builds_without_a_warning_and_no_link_leads_nowhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "reference" / "errors.html").stat().st_size > 10_000
    text = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert "fonts.googleapis" not in text
    assert not [part for part in text.split('src="')[1:] if part.startswith("http")]


@pytest.mark.slow
@pytest.mark.ray
def test_a_folder_of_photos_is_served_as_the_page_says(place: Path) -> None:
    """Every command of the page, `run` until nothing waits, `query` while it runs."""
    environment: dict[str, Any] = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    call = [sys.executable, "-m", "stream_odml.cli.main"]
    lines = [
        shlex.split(line)[1:] for block in blocks("howto/photos.md", "bash") for line in block.splitlines()
    ]
    running: subprocess.Popen[bytes] | None = None
    try:
        for arguments in lines:
            if arguments[0] == "config":
                with Path("stream.yaml").open("a") as file:
                    file.write("service: {port: 0}\nmetrics: {port: 0}\ncluster: {cpus: 4}\n")
            if arguments[0] == "run":
                running = subprocess.Popen([*call, *arguments], env=environment)
                continue
            for _ in range(90):  # the stream starts; until then `query` says that none runs
                done = subprocess.run([*call, *arguments], env=environment, capture_output=True, text=True)
                if done.returncode == 0 or running is None or running.poll() is not None:
                    break
            assert done.returncode == 0, (arguments, done.stderr)
            if arguments[0] == "query":
                assert "oak" in done.stdout
    finally:
        if running is not None:
            running.terminate()
            running.wait(120)


def test_one_version_everywhere() -> None:
    metadata = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    version = metadata["version"]
    assert __version__ == version
    assert f"\n## {version}\n" in (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    assert str(citation["version"]) == version
    assert f":{version}" in (REPOSITORY / "deploy" / "README.md").read_text("utf-8")
