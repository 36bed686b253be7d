"""The command `init`: what it writes for images of a kind, and that the result is what it says."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from stream_odml.cli.failures import message_of
from stream_odml.cli.main import app
from stream_odml.cli.own_images import look_at
from stream_odml.config.stream import load_config
from stream_odml.ingest.reasons import BadImage, BadShard, Reason, RowError

MAX_LINES = 24


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of 6, 5 and 4 images, and a note."""
    for name, count in (("ash", 6), ("bay tree", 5), ("elm", 4)):
        (tmp_path / "My photos!" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "My photos!" / name / f"{number}.png").write_bytes(png(300 + number, 200))
    (tmp_path / "My photos!" / "notes.txt").write_text("oak?")
    return tmp_path / "My photos!"


def written(monkeypatch: pytest.MonkeyPatch, photos: Path, *options: str) -> tuple[dict[str, Any], str]:
    monkeypatch.chdir(photos.parent)
    result = CliRunner().invoke(app, ["init", photos.name, "--force", *options], catch_exceptions=False)
    assert result.exit_code == 0
    text = Path("stream.yaml").read_text()
    assert len(text.splitlines()) <= MAX_LINES
    load_config(Path("stream.yaml"))
    return yaml.safe_load(text), result.output


def test_it_says_what_it_saw_and_what_to_type_next(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    config, said = written(monkeypatch, photos)
    assert "3 classes, 15 images (4 to 6 a class), shorter side 200 pixels" in said
    assert "1 file passed over: 1 .txt" in said
    assert config["root"] == "My-photos-stream"
    assert "stream-odml ingest 'My photos!' My-photos-stream/inbox --task base" in said
    assert "stream-odml query 'My photos!/ash/0.png' --root My-photos-stream" in said


def test_the_image_to_ask_for_is_one_that_lands_and_opens(
    monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    (photos / "._ash.jpg").write_bytes(b"of macOS")
    for name in (
        "._0.png",
        "-.png",
    ):  # both come first by name: of another system, and none that can be opened
        (photos / "ash" / name).write_bytes(b"no image")
    _, said = written(monkeypatch, photos)
    assert "stream-odml query 'My photos!/ash/0.png' --root" in said


def test_weights_that_are_not_there_are_said(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    assert "/w/m.safetensors is not here" in written(monkeypatch, photos, "--weights", "/w/m.safetensors")[1]
    folder = str(photos.parent)
    assert f"{folder} is a folder: name the file" in written(monkeypatch, photos, "--weights", folder)[1]
    (photos.parent / "m.safetensors").write_bytes(b"")
    assert "is not here" not in written(monkeypatch, photos, "--weights", "m.safetensors")[1]


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ([], {"backbone": "conv4", "image_size": 64, "head": "discriminant", "lift": 2048}),
        (
            ["--backbone", "facebook/dinov2-small"],
            {
                "backbone": "transformers:facebook/dinov2-small",
                "pretrained": True,
                "image_size": 224,
                "head": "discriminant",
            },
        ),
        (
            ["--weights", "/w/mobilenet.safetensors", "--image-size", "128"],
            {
                "backbone": "mobilenetv2",
                "weights": "/w/mobilenet.safetensors",
                "image_size": 128,
                "head": "discriminant",
            },
        ),
    ],
)
def test_the_model_suits_what_is_there(
    monkeypatch: pytest.MonkeyPatch, photos: Path, options: list[str], model: dict[str, Any]
) -> None:
    config, _ = written(monkeypatch, photos, *options)
    assert config["model"] == model
    assert ("trunk" in config["learning"]) == (len(options) > 0)


def test_too_few_images_hold_none_out(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    assert written(monkeypatch, photos)[0]["evaluation"]["held_out"] == 0.2
    for image in [*photos.rglob("3.png"), *photos.rglob("4.png"), *photos.rglob("5.png")]:
        image.unlink()
    assert written(monkeypatch, photos)[0]["evaluation"]["held_out"] == 0
    assert written(monkeypatch, photos, "--held-out", "0.4")[0]["evaluation"]["held_out"] == 0.4


def test_a_table_is_counted_by_its_rows(tmp_path: Path) -> None:
    rows = {"image": [png(20, 30)] * 5, "class_name": ["ash", "bay", "ash", None, "elm"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    seen = look_at(tmp_path / "t.parquet")
    assert (dict(seen.by_class), seen.median_side) == ({"ash": 2, "bay": 1, "elm": 1}, 20)


def test_what_cannot_be_says_why_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.chdir(photos.parent)
    invoke = CliRunner().invoke
    assert "does not exist" in str(invoke(app, ["init", "nowhere"]).exception)
    assert "--weights FILE.safetensors" in str(
        invoke(app, ["init", photos.name, "--backbone", "mobilenetv2"]).exception
    )
    assert not Path("stream.yaml").exists()
    Path("stream.yaml").write_text("mine")
    assert "--force" in str(invoke(app, ["init", photos.name]).exception)
    assert Path("stream.yaml").read_text() == "mine"


CODE = re.compile(rf"({'|'.join(Reason)}):")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["init"], "a file"),
        (["init"], "a.tar"),
        (["init"], "a.parquet"),
        (["demo", "--source"], "a file"),
        (["demo", "--source"], "a.tar"),
        (["ingest"], "a.tar"),
    ],
)
def test_an_error_for_people_names_the_file_and_has_no_code(
    tmp_path: Path, command: list[str], name: str
) -> None:
    (tmp_path / name).write_bytes(b"PAR1 and nothing else" * 100)
    inbox = [str(tmp_path / "inbox")] if command == ["ingest"] else []
    ended = CliRunner().invoke(app, [*command, str(tmp_path / name), *inbox])
    assert isinstance(ended.exception, ValueError)
    message = message_of(ended.exception)
    assert name in message
    assert not CODE.search(message), message


@pytest.mark.parametrize("kind", [BadShard, RowError, BadImage])
def test_the_reason_of_a_refusal_is_for_programs(kind: type[BadShard] | type[RowError]) -> None:
    assert message_of(kind(Reason.OVERSIZED, "too large; send less")) == "too large; send less"
