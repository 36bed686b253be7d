"""Settings: ranges, methods, and their use inside a validated configuration."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from stream_odml.learn.settings import METHODS, EmbedderSpec, StageSettings, method_settings


@pytest.mark.parametrize("changes", [
    {"weight_old": -1.0}, {"temperature": 0.0}, {"ridge": float("nan")}, {"peer_every": 0}, {"kernel": "linear"},
    {"old_share": 1.0}, {"gallery_map": "spline"}, {"learning_rate": float("inf")}, {"precision": "fp16"},
    {"miner": "MultiSimilarityMiner"}, {"stage_steps": -1}, {"stage_steps": 1.5}, {"peer_every": "5"}, {"ridge": "1"},
])  # fmt: skip
def test_values_out_of_range_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        StageSettings(**changes)


@pytest.mark.parametrize("changes", [{"dim": 0}, {"image_size": 4}, {"pooling": "sum"}, {"pretrained": True}])
def test_specs_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        EmbedderSpec(**changes)


def test_methods_change_only_what_they_name() -> None:
    known = {f.name for f in fields(StageSettings)}
    ours = StageSettings(base_steps=7, learning_rate=1e-5)
    for method, changes in METHODS.items():
        assert set(changes) <= known
        settings = method_settings(method, ours)
        assert settings.learning_rate == 1e-5
        assert settings.base_steps == changes.get("base_steps", 7)
    with pytest.raises(ValueError, match="unknown method 'best'; expected one of ours"):
        method_settings("best")


def test_pydantic_reads_them_and_documents_them() -> None:
    adapter = TypeAdapter(StageSettings)
    assert adapter.validate_python({"weight_old": 3, "metric_loss_args": {"margin": 0.2}}).weight_old == 3.0
    with pytest.raises(ValidationError, match="no_such_knob"):
        adapter.validate_python({"no_such_knob": 1})
    with pytest.raises(ValidationError, match="expected a finite number above 0"):
        adapter.validate_python({"temperature": 0})
    for cls in (StageSettings, EmbedderSpec):
        for name, described in TypeAdapter(cls).json_schema()["properties"].items():
            assert described.get("description"), f"{cls.__name__}.{name} has no docstring"
