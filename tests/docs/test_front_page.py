"""The README stays short, shows pictures, and says the figures that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.docs.pages import PAGES, REPOSITORY

README = PAGES["README.md"]
FIGURES = (REPOSITORY / "benchmarks" / "README.md").read_text("utf-8")
MAX_WORDS = 900


def test_it_is_short_and_shows_pictures() -> None:
    assert len(README.split()) <= MAX_WORDS
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README)
    assert len(pictures) >= 3
    for words, path in pictures:
        assert (REPOSITORY / path).stat().st_size > 1000, path
        assert len(words) > 20


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page, text in (("README.md", README), ("benchmarks/README.md", FIGURES)):
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", text):
            assert ((REPOSITORY / page).parent / link).exists(), (page, link)


def test_the_recall_of_the_front_page_is_the_measured_one() -> None:
    figures = json.loads((REPOSITORY / "benchmarks/results/quality-flowers102.json").read_text())["figures"]
    rows = dict(re.findall(r"^\| ([a-z][^|]+?) \| (0\.\d{3}) \|$", README, re.MULTILINE))
    measured = {
        "never learn on": figures["frozen_f0/last_r1_mapped"],
        "fine-tune, map them": figures["finetune/last_r1_mapped"],
        "stream_odml": figures["ours/last_r1_mapped"],
        "the same, backbone frozen": figures["exact_frozen/last_r1_mapped"],
    }
    assert {name: float(rows[name]) for name in measured} == {k: round(v, 3) for k, v in measured.items()}
    svg = (REPOSITORY / "docs/assets/recall.svg").read_text("utf-8")
    assert f"fine-tuned, gallery stale {rows['fine-tune, keep the stored vectors']}" in svg
    assert f"stream_odml {rows['stream_odml']}" in svg


def test_every_figure_has_one_row_a_command_and_a_date() -> None:
    rows = re.findall(r"^\| [^*|]+ \| [^|]+ \| `([a-z][^`]*)` \| (\d\d-\d\d) \|$", FIGURES, re.MULTILINE)
    assert len(rows) > 30
    for command, _ in rows:
        name = command.split()[0]
        assert (
            Path(REPOSITORY / "benchmarks" / name).exists()
            or (REPOSITORY / "benchmarks" / f"{name}.py").exists()
        )
