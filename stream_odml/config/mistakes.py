"""Lists every mistake of a configuration, each with its place and its remedy.

Protects: one mistake does not hide another. Each wrong part is noted and left out, and the rest is validated again.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stream_odml.config.masking import MASK, is_secret, masked, masked_text
from stream_odml.config.renamed import KEYS

MIN_PREFIX = 3
"""Minimum letters of a wrong key that is suggested as the prefix of a known one."""

MAX_DIGITS = 1000
"""Of a whole number: Python itself reads 4,300."""

Model = type[BaseModel]


def mistakes(model: Model, data: Mapping[str, Any]) -> list[str]:
    """Return a line for each mistake of `data`, with secrets masked."""
    found: dict[str, None] = {}
    while True:
        try:
            validated = model.model_validate(data).model_dump()
            return [*found, *booleans_for_numbers(data, validated)]
        except ValidationError as error:
            items = error.errors()
        found.update(dict.fromkeys(masked_text(_explain(model, item)) for item in items))
        rest = data
        for item in items:
            rest = _without(rest, _blamed(data, item))
        if rest == data:
            return list(found)
        data = rest


def _blamed(data: Mapping[str, Any], item: ErrorDetails) -> tuple[str, ...]:
    """Return the keys that lead to the wrong part; a check of a whole section names the key in its message."""
    place: list[str] = []
    at: Any = data
    for part in map(str, item["loc"]):
        if not isinstance(at, Mapping) or part not in at:
            break
        place.append(part)
        at = at[part]
    if item["type"] == "value_error" and isinstance(at, Mapping):
        # Two sections that do not fit together: "service.max_pixels 5 differs from ..."
        if not place:
            named = re.findall(r"(\w+)\.(\w+)", item["msg"])
            return next(((a, b) for a, b in named if isinstance(at.get(a), Mapping) and b in at[a]), ())
        words = re.findall(r"\w+", item["msg"])
        place += next(([word] for word in words if word in at), [])
    return tuple(place)


def _without(data: Mapping[str, Any], place: tuple[str, ...]) -> Mapping[str, Any]:
    if not place or place[0] not in data:
        return data
    if len(place) == 1:
        return {key: value for key, value in data.items() if key != place[0]}
    return {**data, place[0]: _without(data[place[0]], place[1:])}


class OnceLoader(yaml.SafeLoader):
    """Reads YAML as `safe_load` does, and refuses what that silently takes for something else: a repeated key, of which
    the last would count, and numbers such as 0777 (octal) and 1:30 (base 60)."""

    # The type stubs name another type for `anchor` than PyYAML passes.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping. Raises MarkedYAMLError, with its place, for a repeated key."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key `{key.value}` comes twice; leave one of the two out", key.start_mark
                )
            seen.add(name)
        return node


def _number(loader: OnceLoader, node: yaml.ScalarNode) -> int | float:
    is_whole = node.tag == "tag:yaml.org,2002:int"
    if ":" in node.value or (is_whole and re.fullmatch(r"[-+]?0[0-7_]+", node.value)):
        problem = (
            "a number in base 60, or one that begins with 0, which is octal; write it plainly, or in quotes"
        )
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    if is_whole and len(node.value) > MAX_DIGITS:
        problem = f"a number of {len(node.value)} digits; expected {MAX_DIGITS} at most"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return loader.construct_yaml_int(node) if is_whole else loader.construct_yaml_float(node)


for _kind in ("int", "float"):
    OnceLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)


def booleans_for_numbers(data: Mapping[str, Any], validated: Mapping[str, Any], place: str = "") -> list[str]:
    """Return a line for each `yes`, `on` or `true` that was taken for the number 1, and its like."""
    found = []
    for name, value in data.items():
        taken = validated.get(name)
        if isinstance(value, Mapping) and isinstance(taken, Mapping):
            found += booleans_for_numbers(value, taken, f"{place}{name}.")
        elif isinstance(value, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
            found.append(f"{place}{name}: Input should be a number (got {value!r})")
    return found


def yaml_problem(error: Exception) -> str:
    """Return the problem and its place, without the line itself, which may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{place}{error.problem or error.context}"
    if isinstance(error, UnicodeDecodeError):
        return "it holds bytes that are not UTF-8 text"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).split("\n")[0]


def _explain(model: Model, item: ErrorDetails) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if is_secret(*item["loc"]):
        place = re.sub(r"=.*", f"={MASK}", place)
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = _suggestions(model, item["loc"])
        if near:
            return f"{place}: unknown key; did you mean {' or '.join(f'`{key}`' for key in near)}?"
        return f"{place}: unknown key; `stream-odml config --example` lists all keys"
    value = item.get("input")
    # Of a list or a section nothing is shown, nor walked through: aliases make a few lines of YAML endless.
    is_plain = isinstance(value, str | int | float | bool | type(None))
    seen = f" (got {masked(value, *item['loc'])!r})" if is_plain else ""
    return f"{place or 'config'}: {item['msg'].removeprefix('Value error, ')}{seen}"


def _suggestions(model: Model, loc: tuple[int | str, ...]) -> list[str]:
    """Return keys similar to a wrong one: of its section, else of others, with their section."""
    wrong, known = str(loc[-1]), _keys_at(model, loc[:-1])
    if renamed := KEYS.get(str(loc[0]), {}).get(wrong):
        return [renamed]
    elsewhere = {
        f"{section}.{key}" if section else key: key
        for section in ("", *model.model_fields)
        for key in _keys_at(model, (section,) if section else ())
    }
    if near := _alike(wrong, known):
        return near
    like = _alike(wrong, list(elsewhere.values()), cutoff=0.85)
    return [place for place, key in elsewhere.items() if key in like][:2]


def _alike(wrong: str, known: list[str], cutoff: float = 0.6) -> list[str]:
    """Return at most two keys, best first: another spelling, its initials, a near match, the same words, its prefix."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", wrong).replace("-", "_").lower()
    words = {word for word in name.split("_") if word}
    tests: list[Callable[[str], bool]] = [
        lambda key: key == name,
        lambda key: "_" in key and "".join(word[0] for word in key.split("_")) == name.replace("_", ""),
        lambda key: key in difflib.get_close_matches(name, known, n=1, cutoff=cutoff),
        lambda key: words <= {*key.split("_")} or {*key.split("_")} <= words,
        lambda key: len(name) >= MIN_PREFIX and key.startswith(name),
    ]
    return next((found[:2] for test in tests if (found := [key for key in known if test(key)])), [])


def _keys_at(model: Model, loc: tuple[int | str, ...]) -> list[str]:
    kind: Any = model
    for part in loc:
        found = getattr(kind, "model_fields", {}).get(str(part))
        kinds = (found.annotation, *get_args(found.annotation)) if found is not None else ()
        kind = next((one for one in kinds if isinstance(one, type)), None)
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return list(getattr(kind, "model_fields", {}))
