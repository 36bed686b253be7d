"""The last values that were asked for: which are held, which go, and what is made again."""

from __future__ import annotations

import pytest

from stream_odml.store.recent import Recent


def test_a_value_is_made_once_while_it_is_held() -> None:
    recent: Recent[str, list[int]] = Recent(2)
    first = recent.get("a", lambda: [1])
    assert recent.get("a", lambda: pytest.fail("made again")) is first
    assert recent.find("b") is None


def test_what_was_asked_for_longest_ago_goes() -> None:
    recent: Recent[int, str] = Recent(2)
    for name in (1, 2):
        recent.keep(name, f"value {name}")
    recent.find(1)
    recent.keep(3, "value 3")
    assert list(recent) == [3, 1]
    assert 2 not in recent
    assert recent.get(2, lambda: "made anew") == "made anew"


def test_sizes_are_added_up_and_the_last_value_is_held_whatever_its_size() -> None:
    recent: Recent[str, bytes] = Recent(10, size=len)
    recent.keep("a", b"four")
    recent.keep("b", b"sixsix")
    assert list(recent) == ["b", "a"]
    recent.keep("c", b"larger than all of it")
    assert list(recent) == ["c"]
    recent.keep("a", b"four")
    assert list(recent) == ["a"]
