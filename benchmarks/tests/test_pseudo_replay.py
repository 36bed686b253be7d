"""Pseudo-samples and the maps fitted to them against the formulas in numpy, under models that are one matrix each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.quality.exact import ExactRun
from benchmarks.quality.map_run import MapRun
from benchmarks.quality.methods import parse_method
from benchmarks.quality.pseudo_replay import PSEUDO, ClassMaps, PseudoReplay, push
from benchmarks.quality.state import RunState
from benchmarks.quality.study import Run
from benchmarks.tests.squares import arguments, run, squares, with_lift
from stream_odml.learn.drift import AffineMap
from stream_odml.learn.embedder import Embedder
from stream_odml.learn.map_fit import RIDGES
from stream_odml.learn.settings import StageSettings

RANDOM = np.random.default_rng(7)
STD = np.array([0.5, 1.0, 2.0]).reshape(1, 3, 1, 1)
PIXELS = RANDOM.integers(40, 200, (9, 2, 2, 3)).astype(np.uint8)
OLD, NEW = RANDOM.normal(size=(2, 4, 12))


class Linear(nn.Module):
    """Images [n, 3, 2, 2] to [n, 4]."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weights = torch.from_numpy(weights.astype(np.float32))
        self.std = torch.from_numpy(STD.astype(np.float32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weights.T


def models() -> Any:
    return Linear(OLD), Linear(NEW)


def images() -> np.ndarray:
    return PIXELS.transpose(0, 3, 1, 2).astype(np.float64) / 255


def g(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    moved: np.ndarray = x.reshape(len(x), -1) @ weights.T
    return moved


def pushed_by_hand(x: np.ndarray, target: np.ndarray, step: float, pushes: int) -> np.ndarray:
    """In standardised pixels u = x / std, where the gradient of |f(x) - t|² / 2 is std · Wᵀ(W x - t)."""
    low, high = images().min(), images().max()
    for _ in range(pushes):
        gradient = STD * ((g(OLD, x) - target) @ OLD).reshape(x.shape)
        u = x / STD - step * np.sqrt(len(x)) * gradient / np.linalg.norm(gradient)
        x = np.clip(u * STD, low, high)
    return x


@pytest.mark.parametrize(("step", "pushes"), [(0.05, 1), (0.05, 3), (2.5, 3)])
def test_images_step_down_to_the_target_and_stay_within_the_range_of_pixels(step: float, pushes: int) -> None:
    x, target = images(), np.array([2.0, -1.0, 0.5, 3.0])
    limits = float(x.min()), float(x.max())
    found = push(
        models()[0],
        torch.from_numpy(x.astype(np.float32)),
        torch.from_numpy(target).float(),
        step,
        pushes,
        limits,
    )
    expected = pushed_by_hand(x, target, step, pushes)
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    nearer = np.linalg.norm(g(OLD, expected) - target) < np.linalg.norm(g(OLD, x) - target)
    assert nearer or step > 1, "too long a step passes the target"
    assert (((expected == limits[0]) | (expected == limits[1])).mean() > 0.5) == (step > 1)


def means() -> dict[int, np.ndarray]:
    """Of two classes: where an image lies, and far from all."""
    return {
        7: (g(OLD, images()[4:5])[0] + 0.1).astype(np.float32),
        3: (g(OLD, images()).mean(axis=0) - 40).astype(np.float32),
    }


def pairs_by_hand(label: int, samples: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """What both models make of the pseudo-samples of a class."""
    x, target, all_means = images(), means()[label].astype(np.float64), means()
    nearest = np.argsort(np.linalg.norm(g(OLD, x) - target, axis=1))[:samples]
    pushed = pushed_by_hand(x[nearest], target, step, 3)
    others = np.stack([np.linalg.norm(g(OLD, pushed) - mean, axis=1) for mean in all_means.values()])
    taken = others.argmin(axis=0) == list(all_means).index(label)
    if not taken.any():
        pushed, taken = x[nearest], np.ones(len(nearest), bool)
    return g(OLD, pushed[taken]), g(NEW, pushed[taken])


def test_adc_moves_a_class_by_the_mean_drift_of_its_pseudo_samples() -> None:
    maps = PseudoReplay("adc", samples=5, step=0.05).fit(models(), PIXELS, means(), "cpu", 0)
    for label in (7, 3):
        x, y = pairs_by_hand(label, 5, 0.05)
        assert np.allclose(maps[label].A, np.eye(4))
        assert np.allclose(maps[label].b, (y - x).mean(axis=0), atol=1e-4)
    unpushed = np.argsort(np.linalg.norm(g(OLD, images()) - means()[3], axis=1))[:5]
    drift = (g(NEW, images()) - g(OLD, images()))[unpushed].mean(axis=0)
    assert np.allclose(maps[3].b, drift, atol=1e-4), (
        "no push made an image of the far class: the nearest stand for it"
    )


def test_only_pseudo_samples_that_the_old_model_takes_for_the_class_count() -> None:
    near = g(OLD, images()[0:1])[0]
    others = {1: near.astype(np.float32), 2: g(OLD, images()).mean(axis=0).astype(np.float32)}
    maps = PseudoReplay("adc", samples=9, step=1e-6).fit(models(), PIXELS, others, "cpu", 0)
    apart = np.stack([np.linalg.norm(g(OLD, images()) - mean, axis=1) for mean in others.values()])
    taken = apart[0] < apart[1]
    assert 0 < taken.sum() < 9
    assert np.allclose(maps[1].b, (g(NEW, images()) - g(OLD, images()))[taken].mean(axis=0), atol=1e-3)


def descended(x: np.ndarray, y: np.ndarray, epochs: int, rate: float) -> np.ndarray:
    """W of W x + t, from the identity down the mean distance to y, by Adam (Kingma and Ba 2015) on all at once."""
    both = np.hstack([np.eye(x.shape[1]), np.zeros((x.shape[1], 1))])
    ones, first, second = np.hstack([x, np.ones((len(x), 1))]), np.zeros_like(both), np.zeros_like(both)
    for step in range(1, epochs + 1):
        apart = ones @ both.T - y
        gradient = (apart / np.linalg.norm(apart, axis=1, keepdims=True)).T @ ones / len(x)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        both -= rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return both[:, :-1]


@pytest.mark.parametrize(("epochs", "rate"), [(64, 1e-4), (300, 3e-3)])
def test_apr_moves_the_class_mean_like_adc_and_multiplies_what_differs_from_it(
    epochs: int, rate: float
) -> None:
    one, x = {7: means()[7]}, images()
    base = PseudoReplay("adc", samples=9, step=0.05)
    adc = base.fit(models(), PIXELS, one, "cpu", 0)[7]
    rival = replace(base, kind="apr", epochs=epochs, rate=rate)
    apr = rival.fit(models(), PIXELS, one, "cpu", 0)[7]
    mean = one[7][None].astype(np.float64)
    assert np.allclose(apr.apply(mean), adc.apply(mean), atol=1e-5)
    pushed = pushed_by_hand(x, one[7].astype(np.float64), 0.05, 3)
    expected = descended(g(OLD, pushed), g(NEW, pushed), epochs, rate)
    assert np.abs(expected - np.eye(4)).max() > 0.9 * epochs * rate > 0.005
    assert np.allclose(apr.A, expected, atol=1e-3)
    assert PseudoReplay("apr").epochs == 64
    assert PseudoReplay("apr").rate == 1e-4


def test_rows_are_mapped_by_the_map_of_their_class() -> None:
    shift = {c: AffineMap(np.eye(2), np.full(2, float(c))) for c in (1, 2)}
    maps = ClassMaps(shift, np.array([2, 1, 2]))
    assert maps.apply(np.zeros((3, 2), np.float32)).tolist() == [[2, 2], [1, 1], [2, 2]]
    with pytest.raises(ValueError, match="2 rows, expected the 3"):
        maps.apply(np.zeros((2, 2), np.float32))


def test_class_means_are_of_learnt_images_and_follow_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.quality.report.recall_plots", lambda *_: [])
    monkeypatch.setattr("benchmarks.quality.report.heat_maps", lambda *_: [])
    asked: list[dict[int, np.ndarray]] = []
    made: list[dict[int, AffineMap]] = []
    learnt: list[dict[int, np.ndarray]] = []
    fit, add = PseudoReplay.fit, MapRun._add_means

    now = [0.0]

    def watched(self: PseudoReplay, models: Any, pixels: Any, means: Any, device: str, seed: int) -> Any:
        now[0] += 100
        asked.append(dict(means))
        made.append(fit(self, models, pixels, means, device, seed))
        return made[-1]

    def added(self: MapRun, model: Any, stage: int) -> None:
        task = self.stream.tasks[stage].images
        labels = self.study.images.labels[task]
        learnt.append({int(c): self._embed(model, task[labels == c]).mean(axis=0) for c in np.unique(labels)})
        add(self, model, stage)

    monkeypatch.setattr(PseudoReplay, "fit", watched)
    monkeypatch.setattr(Run, "_clock", property(lambda self: lambda: now[0]))
    monkeypatch.setattr(MapRun, "_add_means", added)
    names = "l2,apr_l2=apr_l2:samples=4,adc_l2"
    run(monkeypatch, arguments(squares(tmp_path), tmp_path, "--commit", "c0ffee", "--methods", names))
    figures = json.loads((tmp_path / "quality-squares.json").read_text())["figures"]
    for name in ("apr_l2", "adc_l2"):
        assert figures[f"{name}/last_r1_reextracted"] == figures["l2/last_r1_reextracted"], "one model"
        assert figures[f"{name}/last_r1_stale"] == figures["l2/last_r1_stale"]
        assert f"{name}/last_r1_mapped" in figures
        assert figures[f"{name}/pass_s"] == 200, "to fit its maps is what it costs"
    base, first = learnt[0], learnt[1]
    assert [len(means) for means in asked[:2]] == [6, 9]
    for c, mean in asked[0].items():
        assert np.allclose(mean, base[c], atol=1e-5)
    for c, mean in asked[1].items():
        expected = first[c] if c in first else made[0][c].apply(base[c][None])[0]
        assert np.allclose(mean, expected, atol=1e-4), c


def test_a_solved_head_is_carried_by_a_map_fitted_to_images_and_pseudo_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.quality.report.recall_plots", lambda *_: [])
    monkeypatch.setattr("benchmarks.quality.report.heat_maps", lambda *_: [])
    used: list[list[tuple[int, torch.Tensor, torch.Tensor]]] = []
    of_images: list[tuple[np.ndarray, np.ndarray]] = []
    maps: list[AffineMap] = []
    pairs, fit = PseudoReplay.pairs, ExactRun._pseudo_map

    def watched(self: PseudoReplay, models: Any, pixels: Any, means: Any, device: str) -> Any:
        used.append(
            [(label, x.clone(), y.clone()) for label, x, y in pairs(self, models, pixels, means, device)]
        )
        yield from used[-1]

    def fitted(self: ExactRun, state: RunState, parent: Embedder) -> Any:
        task = self.stream.tasks[state.stage].images
        of_images.append((self._embed(parent, task), self._embed(state.student, task)))
        found = fit(self, state, parent)
        assert isinstance(found, AffineMap)
        maps.append(found)
        return found

    monkeypatch.setattr(PseudoReplay, "pairs", watched)
    monkeypatch.setattr(ExactRun, "_pseudo_map", fitted)
    words = ("--commit", "c0ffee", "--methods", with_lift(0, "apr_exact,exact_always"))
    run(monkeypatch, arguments(squares(tmp_path), tmp_path, *words))
    figures = json.loads((tmp_path / "quality-squares.json").read_text())["figures"]
    assert figures["apr_exact/steps"] == figures["exact_always/steps"] == 4
    assert [len(of_classes) for of_classes in used] == [6, 9]
    for pseudo, (x, y), found in zip(used, of_images, maps, strict=True):
        left = np.concatenate([x, *(part.numpy() for _, part, _ in pseudo)]).astype(np.float64)
        right = np.concatenate([y, *(part.numpy() for _, _, part in pseudo)]).astype(np.float64)
        assert len(left) > len(x)
        expected = [ridge_map(left, right, ridge) for ridge in RIDGES]
        assert any(
            np.allclose(found.A, A, atol=1e-6) and np.allclose(found.b, b, atol=1e-6) for A, b in expected
        )


def ridge_map(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Argmin of the mean of |A x + b - y|² + r |A - I|², r = ridge · the mean variance of x."""
    d = x.shape[1]
    u, v = x - x.mean(axis=0), y - y.mean(axis=0)
    r = ridge * u.var(axis=0).mean()
    A = np.linalg.solve(u.T @ u / len(u) + r * np.eye(d), u.T @ v / len(u) + r * np.eye(d)).T
    return A, y.mean(axis=0) - A @ x.mean(axis=0)


def test_pseudo_replay_is_asked_for_by_name() -> None:
    method = parse_method("few=apr_l2:samples=30:pushes=9", StageSettings())
    assert method.map_rival == PseudoReplay("apr", samples=30, step=PSEUDO["apr_l2"].step, pushes=9)
    assert method.settings == parse_method("l2", StageSettings()).settings
    assert np.isclose(PSEUDO["apr_l2"].step * np.sqrt(1000), 25)
    assert np.isclose(PSEUDO["adc_l2"].step * np.sqrt(100), 25)
