"""The map as the page lays it out in a real browser: similar items together, and steady while others come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_odml.config.service import ServiceOptions
from stream_odml.service.backend import MapRequest
from stream_odml.service.errors import unavailable
from tests.service.browser import Browser
from tests.service.fake_backend import FakeBackend
from tests.service.test_page import CHROMIUM, serving

LAYOUT = """(async () => {
  const until = async (what) => { for (let i = 0; i < 1600; i++) { const found = what(); if (found) return found;
    await new Promise((go) => setTimeout(go, 25)); } throw new Error(`waited for ${what}`); };
  const map = await until(() => document.getElementById("map"));
  const select = await until(() => document.getElementById("map-layout"));
  await until(() => map.dataset.layout === "near");
  select.value = "plane";
  select.dispatchEvent(new Event("change"));
  await until(() => map.dataset.layout === "plane");
  const { begin, place } = await import("/page/layout.js");
  const seen = await (await fetch("/v1/projection?neighbours=3")).json();
  const near = seen.neighbours.flat();
  const once = () => place({ ...begin({ ...seen, near }, new Map()), near, epochs: 100, strength: 1 });
  const [a, b] = [once(), once()];
  const known = new Map(seen.ids.slice(1).map((id, i) => [id, [a.x[i + 1], a.y[i + 1]]]));
  const more = begin({ ...seen, near }, known);
  const again = place({ ...more, near, epochs: 30, strength: 0.3 });
  const plain = (places) => [...places.x].map((x, i) => [x, places.y[i]]);
  return { classes: seen.class, plane: plain(seen), laid: plain(a), same: plain(b), again: plain(again),
    reach: Math.max(...a.x.map(Math.abs), ...a.y.map(Math.abs)) };
})()"""


def alike(places: Sequence[Sequence[float]], classes: Sequence[int]) -> float:
    """Share of items whose nearest other one in the plane is of their class."""
    xy = np.asarray(places)
    distances = ((xy[:, None] - xy[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((np.asarray(classes)[distances.argmin(axis=1)] == np.asarray(classes)).mean())


@pytest.mark.skipif(CHROMIUM is None, reason="NOT CHECKED: no Chromium on this machine")
def test_similar_items_lie_together_where_a_plane_shows_two_directions_of_many(tmp_path: Path) -> None:
    async def seen(address: str) -> tuple[Any, list[str]]:
        async with Browser(CHROMIUM or "", tmp_path / "profile", f"{address}/") as browser:
            return await browser.run(LAYOUT), browser.problems

    with serving(ServiceOptions(), FakeBackend(n_classes=300, per_class=4, dim=64)) as address:
        said, problems = asyncio.run(seen(address))
    assert alike(said["plane"], said["classes"]) < 0.5
    assert alike(said["laid"], said["classes"]) > 0.95
    assert said["laid"] == said["same"]
    assert said["reach"] == pytest.approx(1.0)
    # Laid out again with one item more, nothing jumps, and the item is among its own.
    assert np.corrcoef(np.ravel(said["laid"]), np.ravel(said["again"]))[0, 1] > 0.98
    assert alike(said["again"], said["classes"]) > 0.95
    assert [problem for problem in problems if "thumbnail" not in problem] == []


class Overloaded(FakeBackend):
    """Finds no neighbours in time."""

    def projection(self, asked: MapRequest) -> Mapping[str, Any]:
        if asked.neighbours:
            raise unavailable("overloaded", "too much to do", 5)
        return super().projection(asked)


PLANE = """(async () => {
  for (let i = 0; i < 1600; i++) {
    const map = document.getElementById("map");
    if (map?.dataset.layout && map.getAttribute("aria-label").startsWith("Map of 20 items")) return map.dataset.layout;
    await new Promise((go) => setTimeout(go, 25));
  }
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="NOT CHECKED: no Chromium on this machine")
def test_the_plane_is_shown_where_neighbours_are_not_found_in_time(tmp_path: Path) -> None:
    async def seen(address: str) -> Any:
        async with Browser(CHROMIUM or "", tmp_path / "profile", f"{address}/") as browser:
            return await browser.run(PLANE)

    with serving(ServiceOptions(), Overloaded()) as address:
        assert asyncio.run(seen(address)) == "plane"
