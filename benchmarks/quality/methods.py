"""What the command line says of methods: names of METHODS, or variations on them."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from benchmarks.quality.map_rivals import MAPS, MapRival
from benchmarks.quality.pseudo_replay import PSEUDO, PseudoReplay
from benchmarks.quality.rivals import RIVALS, Rival
from stream_odml.learn.discriminant import HeadSettings
from stream_odml.learn.settings import METHODS, EmbedderSpec, StageSettings, method_settings, renewed

FROZEN = ("frozen_f0", "frozen_pretrained")
EXACT: Mapping[str, str] = {
    "ours": "ours",
    "ours_backfill": "ours",
    "exact_frozen": "ours",
    "exact_pretrained": "ours",
    "exact_always": "ours",
    "apr_exact": "ours",
    "l2_exact": "l2",
    "relation_exact": "relation",
    "finetune_exact": "finetune",
    "joint_exact": "joint",
    **dict.fromkeys(RIVALS, "ours"),
}
"""Methods whose head is solved, with the one of METHODS whose settings they have. `ours`: the trunk moves where the
rule of `learning.trunk: auto` asks for it and the floor lets it (`moving.py`); `ours_backfill`: then every item is
embedded anew, as where images are at hand; `exact_frozen`: on the trunk of the
base stage; `exact_pretrained`: on the weights that it started from; `exact_always`: the trunk is learnt in every stage,
and what is stored is mapped; `apr_exact`: by a map that is fitted to pseudo-samples of old classes, in the place of
composites (`pseudo_replay.py`); `l2_exact`, `relation_exact`, `finetune_exact`: the same, but for what holds the trunk;
`joint_exact`: on the trunk of `joint`, everything re-extracted; those of RIVALS have other heads on the trunk of the
base stage."""
MOVING = ("ours", "ours_backfill")
ALWAYS = ("exact_always", "apr_exact", "l2_exact", "relation_exact", "finetune_exact")
_TRUNK: Mapping[str, Mapping[str, Any]] = {
    "l2_exact": {"weight_hold": 5.0, "map_composites": 6},
    "relation_exact": {"map_composites": 6},
    "finetune_exact": {"map_composites": 6},
}
"""Features are held in place of embeddings, and all have the map of `exact_always`: training is compared."""
MAP_RIVALS: Mapping[str, MapRival | PseudoReplay] = {**MAPS, **PSEUDO}
"""On the models of `l2`, with a map of their own."""
NEEDS_WEIGHTS = ("frozen_pretrained", "exact_pretrained")
_NAME = r"[\w.+-]+"
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Method:
    """A name for the table, the preset that it varies, and its settings."""

    name: str
    preset: str
    settings: StageSettings
    rival: Rival | None = None
    """Its options, of one of RIVALS."""
    map_rival: MapRival | PseudoReplay | None = None
    """The same of one of MAP_RIVALS."""
    head: tuple[tuple[str, Any], ...] = ()
    """Names and values of HeadSettings that stand whatever a stream chooses."""
    lift: int | None = None
    """Random features beside the trunk's, where it is not for `model.lift` to say."""

    @property
    def keeps_base_trunk(self) -> bool:
        """Whether all that it compares are features under the trunk of the base stage."""
        return self.preset == "exact_frozen" or self.rival is not None

    @property
    def trains_on_each_task(self) -> bool:
        """Whether every later stage takes steps on the images of its own task, and of no other."""
        kind = EXACT.get(self.preset, self.preset)
        return kind not in ("joint", *FROZEN) and (self.preset not in EXACT or self.preset in ALWAYS)


def parse_methods(text: str, common: StageSettings) -> list[Method]:
    """Methods as `parse_method` reads them, between commas. ValueError for a name given twice, and for one method under
    two names: both would be one run."""
    methods: list[Method] = []
    for part in re.split(rf",(?={_NAME}(?:=|,|$))", text):  # not at the commas of a JSON value
        method = parse_method(part, common)
        for other in methods:
            if method.name == other.name:
                raise ValueError(
                    f"method {method.name!r} is asked for twice; give each variation its own name"
                )
            if replace(method, name=other.name) == other:
                raise ValueError(
                    f"methods {other.name!r} and {method.name!r} are the same; ask for one of them"
                )
        methods.append(method)
    return methods


def parse_method(text: str, common: StageSettings) -> Method:
    """`ours`, or `NAME=PRESET:field=value:field=value`, over the settings that all methods share; `head.field` is one
    of HeadSettings, or `lift`."""
    name, _, rest = text.partition("=")
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"method name {name!r}; expected letters, digits and _ . + -")
    preset, *changes = re.split(r":(?=[\w.]+=)", rest) if rest else [name]
    for change in changes:
        if change.startswith("base_"):
            raise ValueError(
                f"{change!r} is of the stage that all methods start from; use --set or --base-steps"
            )
    if preset not in all_names():
        raise ValueError(f"unknown method {preset!r}; expected one of {', '.join(all_names())}")
    if preset in MAP_RIVALS:
        rival = apply_changes(MAP_RIVALS[preset], changes)
        return Method(name, preset, method_settings("l2", common), map_rival=rival)
    settings = method_settings(EXACT.get(preset, preset), common)
    if preset in RIVALS:
        return Method(name, preset, settings, apply_changes(RIVALS[preset], changes))
    if preset == "ours_backfill":
        settings = renewed(settings)
    of_head = [change for change in changes if change.startswith("head.")]
    if of_head and preset not in EXACT:
        raise ValueError(f"{of_head[0]!r}: the head of {preset!r} is not solved")
    settings = replace(settings, **_TRUNK.get(preset, {}))
    settings = apply_changes(settings, [change for change in changes if change not in of_head])
    head = dict(_head_value(change.removeprefix("head.")) for change in of_head)
    return Method(name, preset, settings, lift=head.pop("lift", None), head=tuple(head.items()))


def _head_value(change: str) -> tuple[str, Any]:
    field = change.partition("=")[0]
    defaults: Any = EmbedderSpec(head="discriminant") if field == "lift" else HeadSettings()
    return field, getattr(apply_changes(defaults, [change]), field)


def apply_changes(settings: Settings, changes: list[str]) -> Settings:
    """`field=value` each; the value is JSON, or else text. ValueError for an unknown field and for a value that is none
    of its type or range."""
    fields: Any = settings
    known = {field.name for field in dataclasses.fields(fields)}
    changed = asdict(fields)
    for change in changes:
        field, _, text = change.partition("=")
        if field not in known:
            raise ValueError(f"unknown setting {field!r}; expected one of {', '.join(sorted(known))}")
        changed[field] = _value(text)
    kind: Any = type(settings)
    try:
        checked: Settings = _adapter(kind).validate_python(changed)
        return checked
    except ValidationError as error:
        first = error.errors()[0]
        where, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {said}" if where else said) from None


@functools.cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """What checks settings of a kind: to make it takes longer than to use it."""
    return TypeAdapter(kind)


def pooled_spec(spec: EmbedderSpec) -> EmbedderSpec:
    """The backbone's whole pooled feature, without a head: what `frozen_pretrained` is measured with."""
    from stream_odml.learn.embedder import build_embedder

    features = build_embedder(spec, 0).head
    return replace(spec, head="none", dim=int(getattr(features, "in_features", spec.dim)))


def all_names() -> list[str]:
    """Every preset, in the order of the table."""
    return [*METHODS, *(name for name in EXACT if name not in METHODS), *MAP_RIVALS]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
