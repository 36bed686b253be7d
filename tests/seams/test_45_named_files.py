"""Seam 45: a file that a person names for output is whole, or what it was: a full disk costs no earlier one, a device
or a pipe stays one. Places that no shell has written out, and what is no place, are refused before anything is made."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.cli.failures import message_of
from stream_odml.cli.own_images import look_at, raw_items
from stream_odml.config.stream import ConfigError, load_config, parse_config
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.exporting import export
from stream_odml.exchange.places import open_target
from stream_odml.storage.atomic import write_named
from stream_odml.storage.files import open_files
from tests.ingest.pictures import picture


def fails(file: Any) -> None:
    file.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_no_earlier_file_and_leaves_none(tmp_path: Path) -> None:
    kept, new = tmp_path / "report.html", tmp_path / "new.html"
    kept.write_text("earlier")
    kept.chmod(0o600)
    for path in (kept, new):
        with pytest.raises(OSError, match="No space") as caught:
            write_named(path, fails)
        assert (
            message_of(caught.value)
            == f"No space left on device at {path}; free some, and run the same command again"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert kept.read_text() == "earlier"
    write_named(kept, lambda file: file.write(b"later"))
    assert (kept.read_text(), stat.S_IMODE(kept.stat().st_mode)) == ("later", 0o600)


def test_links_devices_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    write_named(tmp_path / "link", lambda file: file.write(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        write_named(pipe, lambda file: file.write(b"through"))
        assert reader.communicate()[0] == b"through"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_named(Path("/dev/null"), lambda file: file.write(b"away"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(FileNotFoundError, match=r"none/report\.html"):
        write_named(tmp_path / "none" / "report.html", lambda file: None)


@pytest.mark.parametrize(
    "section",
    [
        {"cluster": {"cache_dir": "~/cache"}},
        {"service": {"features_dir": "~/features"}},
        {"service": {"token_file": "~/token"}},
        {"service": {"metrics_dir": "$HOME/metrics"}},
        {"metrics": {"tensorboard": "${RUNS}/board"}},
        {"model": {"weights": "~/weights.safetensors"}},
        {"source": {"path": "a\0b"}},
        {"source": {"path": "\ud800"}},
        {"service": {"push_dir": "\ud800"}},
        {"cluster": {"cache_dir": ""}},
        {"source": {"path": " "}},
        {"root": ""},
        {"service": {"features_dir": " "}},
    ],
)
def test_a_path_of_a_configuration_is_one(section: dict[str, Any]) -> None:
    (name,) = section
    with pytest.raises(ConfigError, match=name) as caught:
        parse_config(section)
    assert "1 mistake" in str(caught.value)


@pytest.mark.parametrize("ports", [[9473, 9410], [9410, 70_000], [-1, 5], [9410]])
def test_ports_of_a_configuration_are_some(ports: list[int]) -> None:
    """Of ports in the other order none was tried, and one that is none ended the replica."""
    with pytest.raises(ConfigError, match=r"service\.metrics_ports"):
        parse_config({"service": {"metrics_ports": ports}})


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ["service: &s {port: *s, labels: *s, nothing: *s}", "x: &x [*x]\nroot: *x", None]
)
def test_aliases_make_no_configuration_endless(tmp_path: Path, text: str | None) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12)
    )
    (tmp_path / "stream.yaml").write_text(text or f"{bomb}root: *a12\n")
    with pytest.raises(ConfigError, match=r"Input should be a valid (string|integer)"):
        load_config(tmp_path / "stream.yaml")


def test_a_limit_that_is_no_number_is_a_mistake_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"ingest\.max_pixels: Input should be a finite number"):
        parse_config({"ingest": {"max_pixels": float("nan")}})


@pytest.mark.parametrize("place", ["~/out", "$OUT"])
def test_a_folder_to_write_to_is_written_out(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="only a shell expands"):
        open_target(place)
    with pytest.raises(ValueError, match="only a shell expands"):
        export(str(tmp_path / "no-root"), place)
    with pytest.raises(ValueError, match="only a shell expands"):
        write_named(Path(place) / "report.html", lambda file: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sections",
    [
        {"service": {"push_dir": "https://host/pushed"}},
        {"service": {"token_file": "s3://bucket/token"}},
        {"metrics": {"tensorboard": "s3://bucket/logs"}},
        {"source": {"kind": "directory", "path": "gs://bucket/inbox"}},
        {"model": {"backbone": "mobilenetv2", "weights": "https://host/w.safetensors"}},
        {"metrics": {"tensorboard": "file://host/logs"}},
    ],
)
def test_an_address_is_no_folder_of_this_machine(sections: dict[str, Any]) -> None:
    """It became a folder called `https:` in the working folder."""
    with pytest.raises(ConfigError, match="as an address has; this takes a place on this machine"):
        parse_config(sections)


@pytest.mark.parametrize(
    ("sections", "remedy"),
    [
        ({"source": {"kind": "directory", "path": "file:///inbox"}}, "write it without file://"),
        (
            {"model": {"backbone": "mobilenetv2", "weights": "file:///w.safetensors"}},
            "write it without file://",
        ),
        ({"source": {"kind": "s3", "path": "gs://bucket/inbox"}}, "write s3://BUCKET/PREFIX"),
    ],
)
def test_what_a_place_cannot_begin_with_is_refused(sections: dict[str, Any], remedy: str) -> None:
    """An inbox called `file:` was made below the root."""
    with pytest.raises(ConfigError, match=remedy):
        parse_config(sections)


def test_pushed_images_may_lie_in_a_bucket() -> None:
    assert parse_config({"service": {"push_dir": "s3://bucket/in"}}).service.push_dir == "s3://bucket/in"


def test_a_place_of_this_machine_may_be_called_a_file(tmp_path: Path) -> None:
    config = parse_config({"metrics": {"tensorboard": f"file://{tmp_path}/logs"}})
    assert config.metrics.tensorboard == tmp_path / "logs"


@pytest.mark.parametrize("root", ["gs://bucket/root", "az://bucket/root", "http://host/root"])
def test_a_root_in_a_store_of_another_kind_is_refused(root: str) -> None:
    """The table's library tried it, and its answer named keys of S3."""
    with pytest.raises(ConfigError, match=r"no storage for .*expected a local path, file:// or s3://"):
        parse_config({"root": root})
    with pytest.raises(ValueError, match="no storage for"):
        open_files(root)


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "loop"):
        with pytest.raises(ExchangeError, match="is no folder; name a folder"):
            open_target(str(tmp_path / name))
        with pytest.raises(ExchangeError, match="is no folder; name a folder"):
            export(str(tmp_path / "no-root"), str(tmp_path / name))
    with pytest.raises(ExchangeError, match="no format is named"):
        export(str(tmp_path / "no-root"), str(tmp_path / "out"), formats=[])


@pytest.mark.parametrize("column", ["vector", None])
def test_a_table_without_images_is_none_to_begin_with(tmp_path: Path, column: str | None) -> None:
    columns: dict[str, Any] = {"class_name": ["a", "b"], "id": ["1", "2"]}
    if column is not None:
        columns[column] = pa.array([[1.0, 2.0], [2.0, 1.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(ValueError, match=r"holds no images.*stream-odml adopt"):
        look_at(tmp_path / "v.parquet")
    with pytest.raises(ValueError, match=r"holds no images.*stream-odml adopt"):
        list(raw_items(tmp_path / "v.parquet"))  # what the demo reads
    with pytest.raises(ValueError, match=r"holds no images.*stream-odml adopt"):
        look_at(tmp_path)
    (tmp_path / "oak").mkdir()
    (tmp_path / "oak" / "leaf.png").write_bytes(picture(1, "PNG"))
    assert look_at(tmp_path).by_class == {"oak": 1}, "beside images it is passed over"


def test_what_a_library_draws_is_one_line_with_the_remedy() -> None:
    full = "No space left on device (os error 28)"
    drawn = f"Generic error\n      \x1b[31m\u21b3\x1b[0m cannot copy\n   \x1b[31m\u21b3\x1b[0m {full}\n"
    said = f"Generic error: cannot copy: {full}; free some, and run the same command again"
    assert message_of(OSError(drawn)) == said


def test_a_working_folder_that_is_gone_is_named() -> None:
    script = "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d); " + (
        "import sys; sys.argv = ['stream-odml', 'status', 'root']; "
        "from stream_odml.cli.main import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.strip() == "error: the working folder was deleted; change to another one with cd"
