"""What the command line says of methods: names of METHODS, or variations on them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import Any

from stream_odml.learn.settings import METHODS, EmbedderSpec, StageSettings, method_settings

FROZEN = ("frozen_f0", "frozen_pretrained")


@dataclass(frozen=True)
class Method:
    """A name for the table, the preset that it varies, and its settings."""

    name: str
    preset: str
    settings: StageSettings


def parse_method(text: str, common: StageSettings) -> Method:
    """`ours`, or `NAME=PRESET:field=value:field=value`, over the settings that all methods share."""
    name, _, rest = text.partition("=")
    preset, *changes = rest.split(":") if rest else [name]
    return Method(name, preset, apply_changes(method_settings(preset, common), changes))


def apply_changes(settings: StageSettings, changes: list[str]) -> StageSettings:
    """`field=value` each; the value is JSON, or else text. ValueError for an unknown field."""
    known = {field.name for field in dataclasses.fields(settings)}
    for change in changes:
        field, _, text = change.partition("=")
        if field not in known:
            raise ValueError(f"unknown setting {field!r}; expected one of {', '.join(sorted(known))}")
        settings = replace(settings, **{field: _value(text)})
    return settings


def pooled_spec(spec: EmbedderSpec) -> EmbedderSpec:
    """The backbone's whole pooled feature, without a head: what `frozen_pretrained` is measured with."""
    from stream_odml.learn.embedder import build_embedder

    features = build_embedder(spec, 0).head
    return replace(spec, head="none", dim=int(getattr(features, "in_features", spec.dim)))


def all_names() -> list[str]:
    """Every preset, in the order of the table."""
    return list(METHODS)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
