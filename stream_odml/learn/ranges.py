"""Ranges of settings, declared once in a field's type: `Annotated[float, Range(above=0)]`.

Protects: what a dataclass checks when it is built is what `stream-odml config --example` and the JSON schema show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a finite number; None leaves a side open."""

    at_least: float | None = None
    above: float | None = None
    under: float | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError, with the name and the value, for a number out of range."""
        inside = (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.under is None or value < self.under)
        )
        if not inside:
            raise ValueError(f"{name}: {value!r}, expected {self}")

    def __str__(self) -> str:
        if self.under is not None:
            return f"at least {self.at_least:g} and under {self.under:g}"
        if self.above is not None:
            return f"a finite number above {self.above:g}"
        return "a finite number" + ("" if self.at_least is None else f" of at least {self.at_least:g}")

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Callable[[Any], Any]) -> Any:
        """Add the bounds to the JSON schema of the field; pydantic calls this."""
        bounds = {"minimum": self.at_least, "exclusiveMinimum": self.above, "exclusiveMaximum": self.under}
        return {**handler(core_schema), **{key: bound for key, bound in bounds.items() if bound is not None}}


Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, under=1)]
Count = Annotated[int, Range(at_least=0)]


def check_fields(settings: Any) -> None:
    """Raise ValueError for the first field of a dataclass outside its Range or its Literal, or with a Range and no
    number of its kind; None is always allowed."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if value is None:
            continue
        parts = list(_parts(hint))
        number, kind = (Real, "a number") if float in parts else (Integral, "a whole number")
        for part in parts:
            if isinstance(part, Range):
                if not isinstance(value, number):
                    raise ValueError(f"{name}: {value!r}, expected {kind}")
                part.check(name, value)
            elif get_origin(part) is Literal and value not in get_args(part):
                raise ValueError(f"{name}: {value!r}, expected one of {', '.join(map(str, get_args(part)))}")


def _parts(hint: Any) -> Iterator[Any]:
    """Yield a type, its metadata, and those of the types that it is made of."""
    yield hint
    if get_origin(hint) is Literal:
        return
    for part in get_args(hint):
        yield from _parts(part)
