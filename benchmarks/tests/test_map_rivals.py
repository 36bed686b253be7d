"""Maps between two models against what made the second from the first, and a query side that compares as each item's
own model would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from benchmarks.quality.map_rivals import MAPS, MapRival
from benchmarks.quality.map_run import MapRun
from benchmarks.quality.methods import parse_method
from benchmarks.tests.squares import arguments, run, squares
from stream_odml.learn.drift import AffineMap
from stream_odml.learn.settings import StageSettings

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(400, 6)).astype(np.float32)
TURN = np.linalg.qr(RANDOM.normal(size=(6, 6)))[0].astype(np.float32)


def units(g: np.ndarray) -> np.ndarray:
    unit: np.ndarray = g / np.linalg.norm(g, axis=1, keepdims=True)
    return unit


def test_the_mean_map_adds_the_mean_drift() -> None:
    shift = np.arange(6, dtype=np.float32)
    assert np.allclose(MapRival("mean").fit(X, X + shift, 0).apply(X), X + shift, atol=1e-5)


def test_the_orthogonal_map_is_the_rotation_of_procrustes() -> None:
    noisy = X @ TURN.T + 0.3 * RANDOM.normal(size=X.shape).astype(np.float32)
    fitted = MapRival("orthogonal").fit(X, noisy, 0)
    assert isinstance(fitted, AffineMap)
    expected, _ = scipy.linalg.orthogonal_procrustes(units(X), units(noisy))
    assert np.allclose(fitted.A.T, expected, atol=1e-5)
    assert np.allclose(fitted.A @ fitted.A.T, np.eye(6), atol=1e-5)


def test_ldc_descends_to_the_linear_map_without_a_shift() -> None:
    A = RANDOM.normal(size=(6, 6)).astype(np.float32)
    x = X[:128]
    fitted = MapRival("ldc", epochs=250, rate=3e-2).fit(x, x @ A.T, 0)
    assert isinstance(fitted, AffineMap)
    assert np.allclose(fitted.A, A, atol=0.05)
    assert np.array_equal(fitted.b, np.zeros(6))
    early = MapRival("ldc").fit(X, X @ A.T, 0)
    assert isinstance(early, AffineMap)
    assert not np.allclose(early.A, A, atol=0.5), "its 20 epochs of few images are far from the end"


@pytest.mark.parametrize("kind", ["low_rank", "residual"])
def test_adapters_learn_a_drift_that_they_can_express(kind: Any) -> None:
    y = units(units(X) @ (np.eye(6) + 0.5 * np.outer(TURN[0], TURN[1])).astype(np.float32) + 0.2)
    learnt, held = slice(0, 300), slice(300, 400)
    fitted = MapRival(kind, epochs=120, rate=1e-2, rank=6, hidden=32).fit(X[learnt], y[learnt], 0)
    missed = np.square(units(fitted.apply(X[held])) - y[held]).sum(1).mean()
    assert missed < 0.4 * np.square(units(X[held]) - y[held]).sum(1).mean()


def test_a_low_rank_map_has_that_rank() -> None:
    fitted = MapRival("low_rank", rank=2).fit(X, X @ TURN.T, 0)
    assert isinstance(fitted, AffineMap)
    assert np.linalg.matrix_rank(fitted.A, tol=1e-4) == 2


def test_every_map_is_measured_on_the_models_of_l2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality.report.recall_plots", lambda *_: [])
    monkeypatch.setattr("benchmarks.quality.report.heat_maps", lambda *_: [])
    names = ("qdc_l2", "ldc_l2", "residual_l2", "adapter_orthogonal_l2")
    served: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    backs: dict[str, list[Any]] = {}
    plain = MapRun._compared

    def watched(self: MapRun, state: Any, queries: np.ndarray, gallery: np.ndarray) -> Any:
        found = plain(self, state, queries, gallery)
        served.setdefault((self.method.name, state.stage), found)
        backs[self.method.name] = self._back
        if (self.method.name, state.stage) == ("adapter_orthogonal_l2", 2) and "q" not in kept:
            kept.update(q=queries.copy(), g=gallery.copy(), arrival=self.stream.arrival)
        return found

    kept: dict[str, np.ndarray] = {}
    monkeypatch.setattr(MapRun, "_compared", watched)
    run(
        monkeypatch,
        arguments(squares(tmp_path), tmp_path, "--commit", "c0ffee", "--methods", ",".join(["l2", *names])),
    )
    figures = json.loads((tmp_path / "quality-squares.json").read_text())["figures"]
    for name in names:
        assert figures[f"{name}/last_r1_reextracted"] == figures["l2/last_r1_reextracted"], "one model"
        assert figures[f"{name}/last_r1_stale"] == figures["l2/last_r1_stale"]
    queries, items = served["adapter_orthogonal_l2", 2]
    back = backs["adapter_orthogonal_l2"]
    similar = queries @ items.T
    for version in range(3):
        own = kept["arrival"] == version
        asked = kept["q"]
        for drift in reversed(back[version:]):
            asked = drift.apply(asked)
        assert np.allclose(similar[:, own], units(asked) @ kept["g"][own].T, atol=1e-4)


def test_maps_are_asked_for_by_name() -> None:
    method = parse_method("long=ldc_l2:epochs=200", StageSettings())
    assert method.map_rival == MapRival("ldc", epochs=200)
    assert method.settings == parse_method("l2", StageSettings()).settings
    assert MAPS["qdc_l2"].side == "query"
