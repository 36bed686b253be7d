"""The functions of ours that are on the stack when a library is called: each of them should decide something."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any

from tests.sources import PACKAGE


def hops_to(library: Callable[..., Any], act: Callable[[], object]) -> list[str]:
    """Return our functions on the stack of the call of `library` that is deepest while `act` runs, outermost first."""
    assert isinstance(library, FunctionType), "a function of Python's, which the interpreter tells of"
    found: list[str] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal found
        if event == "call" and frame.f_code is library.__code__:
            found = max(found, ours(stack(frame)), key=len)

    sys.setprofile(watch)
    try:
        act()
    finally:
        sys.setprofile(None)
    assert found, f"{library.__qualname__} was not called"
    return found


def stack(frame: FrameType | None) -> list[CodeType]:
    """Return the code on the stack, outermost first."""
    codes: list[CodeType] = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    return codes[::-1]


def ours(codes: list[CodeType]) -> list[str]:
    """Return those of the package, as `file:function`."""
    package = f"{PACKAGE}/"
    return [
        f"{code.co_filename.removeprefix(package)}:{code.co_qualname}"
        for code in codes
        if code.co_filename.startswith(package)
    ]
