"""The page of the method: its example runs as written, its table says what the presets set."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stream_odml.learn
from stream_odml.learn.geometry import unit
from stream_odml.learn.losses import feature_distillation
from stream_odml.learn.settings import METHODS, method_settings

PAGE = (Path(stream_odml.learn.__path__[0]) / "README.md").read_text(encoding="utf-8")


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_of_the_head_finds_the_class_that_it_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    of_head, _ = examples()
    exec(compile(of_head, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "['class 0' 'class 0' 'class 0']"


def test_the_example_learns_two_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    example = examples()[-1]
    exec(compile(example, "README.md", "exec"), {})
    recalls = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(recalls) == 2
    assert min(recalls) > 0.5


def test_every_method_is_named() -> None:
    assert {name for name in METHODS if f"`{name}`" not in PAGE and f"`method: {name}`" not in PAGE} <= {
        "repel"
    }


def test_the_table_says_what_is_set() -> None:
    ours, faithful = method_settings("ours"), method_settings("faithful")
    for s in (ours, faithful):
        assert (s.weight_old, s.weight_virtual, s.weight_peer, s.temperature) == (10, 10, 1, 4)
    assert (ours.metric_loss, ours.kernel, ours.kernel_width, ours.peer_every) == (
        "supcon",
        "softmax",
        0.05,
        5,
    )
    assert (ours.weight_distill, ours.weight_composites, ours.old_share) == (5, 0.3, 0.1)
    assert (ours.whitening, ours.error_whitening, ours.gallery_map, ours.map_composites) == (
        0.25,
        6,
        "affine",
        6,
    )
    assert (faithful.metric_loss, faithful.kernel, faithful.peer_every) == ("hard_pairs", "cosine", 1)
    assert (
        faithful.weight_distill,
        faithful.weight_composites,
        faithful.old_share,
        faithful.map_composites,
    ) == (
        0,
        0,
        0,
        0,
    )
    assert (faithful.whitening, faithful.error_whitening, faithful.gallery_map) == (0, 0, "affine")


def test_what_distillation_is_compared_with_is_what_the_page_says() -> None:
    fecd, relation, l2 = (method_settings(name) for name in ("fecd", "relation", "l2"))
    assert fecd == replace(relation, metric_loss="hard_pairs")
    assert (relation.weight_old, relation.metric_loss) == (10, "supcon")
    assert l2 == replace(relation, weight_old=0.0, weight_distill=5.0)
    for weight in ("virtual", "peer", "distill", "composites", "hold", "repel"):
        assert getattr(relation, f"weight_{weight}") == 0, weight
    for name in ("sdc_l2", "sdc_finetune"):
        s = method_settings(name)
        assert (s.gallery_map, s.kernel, s.kernel_width, s.map_composites) == ("kernel", "gaussian", 0.3, 0)


def test_feature_distillation_at_20_is_elwf_on_unit_vectors_in_batches_of_40() -> None:
    random = torch.Generator().manual_seed(0)
    ours, old = (unit(torch.randn(40, 8, generator=random)) for _ in range(2))
    elwf = 1 / 2 * sum((a - b).square().sum() for a, b in zip(ours, old, strict=True))
    assert torch.isclose(20 * feature_distillation(ours, old), torch.as_tensor(elwf), rtol=1e-5)
