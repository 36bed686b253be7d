"""Forgetting in a running stream, by the commands a person would type: hidden, deleted, proven."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.client import Client
from stream_odml.cluster.session import run_stream
from stream_odml.config.stream import parse_config
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def _config(root: Path) -> dict[str, object]:
    return {
        "root": str(root),
        "model": {"backbone": "conv4", "dim": 16, "image_size": 16, "lift": 16},
        "learning": {"base_steps": 4, "stage_steps": 4, "classes_per_batch": 2, "images_per_class": 2},
        "boundary": {"new_classes": None, "images": None, "age_s": None},
        "ingest": {"thumbnails": True},
        "evaluation": {"held_out": 0.25},
        "gate": {"enabled": False},  # four steps teach nothing; that is not the question here
        "cluster": {"workers": 1},
        "service": {"port": 0},
        "metrics": {"port": 0},
    }


def _wait(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 240
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.25)


def test_a_learnt_class_goes_for_good(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    shell = CliRunner()
    names = []
    with run_stream(parse_config(_config(tmp_path / "root"))) as session:
        inbox = inbox_path(session.config)
        for number, category in enumerate(islice(glyph_categories(0, images=12), 4)):
            names.append(category.class_name)
            land_items(
                inbox, f"s{number}", [NewItem(image, category.class_name) for image in category.images]
            )
        complete_task(inbox, "first", [f"s{number}.parquet" for number in range(4)])
        store = Store.open(root)
        _wait(lambda: store.refresh() is not None and len(store.tree.versions) == 2, "the stage")
        with Client(session.endpoints.service) as client:
            _wait(lambda: len(client.classes()) == 4, "four classes are served")
            said = shell.invoke(app, ["forget", root, "--class", names[1]])
            assert said.exit_code == 0, said.output
            _wait(lambda: len(client.classes()) == 3, "the class is hidden")
        verify = ["forget", root, "--class", names[1], "--verify"]
        _wait(lambda: "found in" not in shell.invoke(app, verify).output, "its files are gone")
        said = shell.invoke(app, verify)
        assert said.exit_code == 1
        assert "landed copy" in said.output
        assert "s1.parquet" in said.output
        said = shell.invoke(app, [*verify, "--inbox", "--yes"])
        assert said.exit_code == 0, said.output
        assert "What stays" in said.output
        assert not (Path(inbox) / "s1.parquet").exists()
        assert (Path(inbox) / "s0.parquet").exists()
