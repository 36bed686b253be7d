"""Seam 22: text that came with the data is shown on a terminal to the letter: neither markup nor control codes work.

Class names, ids, shard names, errors and file names may look like rich markup or hold escape sequences, direction marks
and line ends. What is printed holds their visible form, and nothing else that a terminal obeys.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from stream_odml.cli import asking
from stream_odml.cli import main as cli
from stream_odml.cli import options as words
from stream_odml.cli.console import StreamView, diff_table, say, shown, stage_table
from stream_odml.cli.report import page
from stream_odml.cli.report_data import ReportData
from stream_odml.client.answers import Hit, SearchResult
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.observe.logs import TextFormatter, set_up_logs
from stream_odml.store.writer import IngestBatch
from tests.service.tiny_stream import TinyStream, picture
from tests.sources import PACKAGE, modules

MARKUP = [
    "Rock [/metal]",
    "[shiny]",
    "[link=file:///etc/passwd]x[/link]",
    "[bold red]",
    "[/]",
    "a [b",
    "\\[x]",
    ":fire:",
]
CODES = [
    "\x1b[31mred", "\x1b]8;;http://evil\x07x\x1b]8;;\x07", "\x9b2J", "\x07\x08", "a\rb", "\u202egnp.exe",
    "\u2066x", "\ufeffx", "x\u200by", "one\u2028two", "\x7f", "\ud800",
]  # fmt: skip
NASTY = MARKUP + CODES


def _obeyed(text: str, rich_styles: bool = False) -> list[str]:
    """Characters of ``text`` that a terminal would obey; of a terminal's own, rich's colours are meant."""
    if rich_styles:
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return [c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and c != "\n"]


def _visible(name: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The terminal that commands print to, very wide."""
    text = io.StringIO()
    console = Console(file=text, width=2000, force_terminal=True, color_system=None, legacy_windows=False)
    for module in (words, asking, cli):
        monkeypatch.setattr(module, "out", console)
    return text


@pytest.mark.parametrize("name", NASTY)
def test_query_shows_names_as_they_are(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    hit = Hit(name, name, 0.5, "v1", None, {})
    monkeypatch.setattr(
        "stream_odml.client.Client.search_image", lambda *a, **k: SearchResult("v1", 1, (hit,))
    )
    (tmp_path / "i.png").write_bytes(picture(0))
    asking.query(tmp_path / "i.png", url="http://127.0.0.1:1", k=1)
    said = screen.getvalue()
    assert said.count(_visible(name)) == 2
    assert not _obeyed(said, rich_styles=True)


@pytest.mark.parametrize("name", NASTY)
def test_tables_and_the_live_view_show_names_as_they_are(name: str) -> None:
    text = io.StringIO()
    console = Console(file=text, width=2000, force_terminal=True, color_system=None)
    change = {"class": name, "from": 0.5, "to": 0.7, "delta": 0.2}
    sets = {"from": f"0.1-{name}", "to": f"0.2-{name}"}
    changes = {"from": name, "to": name, "held_out_set": sets, "metrics": {}, "gained": [change], "lost": [],
               "unchanged": 0, "new_classes": [], "gone_classes": []}  # fmt: skip
    console.print(diff_table(changes))
    console.print(stage_table([{"version": name, "classes": 1}]))
    status: dict[str, Any] = {
        "head": name, "stage": {"phase": "x", "task": name, "step": 1, "total_steps": 2, "losses": {name: 1.0}},
        "recall_at_1": {}, "shards": {}, "images": {}, "classes": 1, "problem": f"PROBLEM {name}",
        "not_learnt": [{"task": name, "state": "s", "attempts": 1, "since": 1e12, "in_words": name}],
    }  # fmt: skip
    with StreamView(console, name) as view:
        view.show(status)
    plain = io.StringIO()
    StreamView(Console(file=plain, width=2000), name).show(status)
    for said, times in ((text.getvalue(), 7), (plain.getvalue(), 4)):
        left = re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", said).replace("\r", "")  # how a live view draws
        assert left.count(_visible(name)) >= times, said
        assert not _obeyed(left)


def _root(folder: Path, name: str) -> str:
    stream = TinyStream(folder)
    land_items(stream.inbox, "s", [NewItem(b"no image", "oak"), NewItem(picture(1), "oak")])
    (ref,) = stream._source.poll(set())
    stream.writer.record_landed([ref])
    from stream_odml.store.tables import GALLERY, quarantine_rows

    refused = quarantine_rows([(ref.shard_id, 0, "bad_label", name, b"")])
    stream.writer.commit_ingest(IngestBatch([ref.shard_id], GALLERY.empty_table(), refused))
    stream.close()
    return stream.root


@pytest.mark.parametrize("name", [name for name in NASTY if name != "\ud800"])  # which no table can hold
def test_quarantine_shows_details_as_they_are(screen: io.StringIO, tmp_path: Path, name: str) -> None:
    asking.quarantine(_root(tmp_path, name))
    assert _visible(name) in screen.getvalue()
    assert not _obeyed(screen.getvalue(), rich_styles=True)


@pytest.mark.parametrize("name", [name for name in NASTY if "/" not in name and name != "\ud800"])
def test_errors_show_file_names_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    text = io.StringIO()
    monkeypatch.setattr(cli, "err", Console(file=text, width=2000, force_terminal=True, color_system=None))
    monkeypatch.setattr(sys, "argv", ["stream-odml", "ingest", f"/nowhere/{name}", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert _visible(name) in text.getvalue()
    assert not _obeyed(text.getvalue(), rich_styles=True)


@pytest.mark.parametrize("name", NASTY)
def test_log_lines_hold_no_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError(name)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "shard %s", (name,), sys.exc_info())
    line = TextFormatter().format(record)
    assert line.count(_visible(name)) == 2
    assert not _obeyed(line)
    root = logging.getLogger()
    before, level = root.handlers, root.level
    try:
        set_up_logs("s", "r", "json", "info")
        logging.getLogger("x").error("shard %s", name)
    finally:
        root.handlers, root.level = before, level
    said = capsys.readouterr().err
    assert not [c for c in _obeyed(said) if c != "\x7f"]
    assert json.loads(said)["message"] == f"shard {name}"


def test_a_second_line_in_a_message_is_no_second_event() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", ("a\n2026-01-01 00:00:00 INFO forged",), None)
    assert "\n    2026" in TextFormatter().format(record)


@pytest.mark.parametrize("name", CODES)
def test_the_report_holds_no_codes(name: str) -> None:
    data = ReportData.__new__(ReportData)
    held: dict[str, Any] = {
        "root": name, "head": name, "items": 0, "classes": 0, "versions": [], "examples": [], "lost_classes": [],
        "quarantine": {name: 1}, "not_learnt": [],
    }  # fmt: skip
    for field, value in held.items():
        object.__setattr__(data, field, value)
    assert not [c for c in _obeyed(page(data, {name: 1.0})) if c != "\n"]


def test_shown_keeps_what_people_write() -> None:
    for name in ("Étude", "می\u200cخواهم", "👩\u200d🔬", "日本", "a\u00a0b", "[x]"):
        assert shown(name).plain == name


def test_say_does_not_wrap_colour_or_link() -> None:
    text = io.StringIO()
    say(Console(file=text, width=20, force_terminal=True), "http://127.0.0.1:8000/ 12 'x' " * 3)
    assert text.getvalue() == "http://127.0.0.1:8000/ 12 'x' " * 3 + "\n"


PRINTS = ("print", "log", "rule", "add_row", "from_markup", "echo")


def test_nothing_is_printed_past_these_functions() -> None:
    """Every `print` of a console gets a renderable, never a string, which rich would read as markup."""
    found = []
    for path, tree in modules(PACKAGE, *(f".{name}(" for name in PRINTS)):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value).lower()
            console = owner in ("out", "err") or "console" in owner
            if console and node.func.attr in ("print", "log", "rule"):
                strings = [arg for arg in node.args if not isinstance(arg, ast.Call | ast.Name)]
                found += [f"{path.name}:{node.lineno}" for _ in strings]
            if node.func.attr in ("add_row", "from_markup", "echo"):
                found += [f"{path.name}:{node.lineno}" for arg in node.args if _is_data(arg)]
            if node.func.attr in ("from_markup", "echo"):
                found.append(f"{path.name}:{node.lineno}")
    assert not found, "print with say() or shown()"


def _is_data(cell: ast.expr) -> bool:
    """A cell that may hold a name: anything but words of ours, figures, and what `shown` and the like give."""
    if isinstance(cell, ast.Constant | ast.Starred):
        return False
    if isinstance(cell, ast.JoinedStr):
        held = [part.value for part in cell.values if isinstance(part, ast.FormattedValue)]
        return any("name" in ast.unparse(value) for value in held)
    return not (isinstance(cell, ast.Call) and ast.unparse(cell.func) in ALLOWED)


ALLOWED = {"shown", "str", "figure", "Text.assemble", "ProgressBar"}


def test_status_shows_problems_as_they_are(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    land_items(stream.inbox, "s", [NewItem(picture(1), "oak")])
    stream.writer.record_landed(stream._source.poll(set()))
    (shard,) = stream.writer.ledger.shards
    stream.writer.set_aside(shard, "Rock [/metal] \x1b[31m")
    stream.close()
    said = CliRunner().invoke(cli.app, ["status", stream.root])
    assert said.exit_code == 0
    assert "Rock [/metal] \\x1b[31m" in said.output
