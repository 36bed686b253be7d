"""Canaries, measured: models that read images otherwise than they did, and starts at which nothing has changed.

    python -m benchmarks.doors --parts canaries

Injected: another checkpoint (unlike, or trained a little further), another resize, BGR, another normalisation, batch
norm in training mode; on the side that loads the model, or on the side that stored its vectors. Restarts: the model of
a root on disk is loaded by new processes with 1 to 4 threads.
"""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from benchmarks.common import Report
from stream_odml.learn.embedder import Embedder, build_embedder, embedder_to_bytes
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.models.canaries import (
    TOLERANCE,
    Canaries,
    Decode,
    as_the_stream_decodes,
    canaries_of,
    vectors_of,
)
from stream_odml.models.diagnosis import diagnose
from stream_odml.models.loading import load_model
from stream_odml.store.artifacts import CANARIES, STUDENT
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer

Pixels = NDArray[np.uint8]
INJECTED, RESTARTS = 200, 200
PROCESSES = (1, 2, 3, 4)
"""Threads of each process that loads the model again and again."""
SPECS = (
    EmbedderSpec("conv4", image_size=32, head="discriminant"),
    EmbedderSpec("conv4", image_size=28, dim=64),
    EmbedderSpec("mobilenetv2", image_size=32, head="discriminant"),
)


@dataclass(frozen=True)
class Injection:
    """A mismatch: its kind, how images are read, and the model."""

    kind: str
    decode: Decode
    model: Embedder


def measure_canaries(report: Report, folder: Path, seed: int) -> None:
    """Inject mismatches and restart; note what was missed, what was named wrongly, and false alarms."""
    count = 20 if report.quick else INJECTED
    deviations, named = [], []
    for number, (model, wrong) in enumerate(islice(injections(seed), count)):
        loads = number % 2 == 0
        if loads:
            kept = Canaries.of(model)
            deviation = kept.deviation(vectors_of(wrong.model, kept.images, wrong.decode))
            found = diagnose(kept, wrong.model, wrong.decode)
        else:
            images = Canaries.of(model).images
            kept = Canaries(images, _vectors(wrong, images))
            deviation = kept.deviation(vectors_of(model, images))
            found = diagnose(kept, model)
        deviations.append(deviation)
        named.append(found.kinds == (wrong.kind,))
        report.row(
            part="canaries", kind=wrong.kind, loads=loads, deviation=deviation, named="+".join(found.kinds)
        )
    report.figure("canary_mismatches", count)
    report.figure("canary_missed", sum(deviation <= TOLERANCE for deviation in deviations))
    report.figure("canary_named_rightly", sum(named) / count)
    report.figure("canary_smallest_injected_deviation", min(deviations))
    restarts = _restarts(folder, seed, 12 if report.quick else RESTARTS)
    report.figure("canary_restarts", len(restarts))
    report.figure("canary_false_alarms", sum(deviation > TOLERANCE for deviation in restarts))
    report.figure("canary_largest_restart_deviation", max(restarts))


def injections(seed: int) -> Iterator[tuple[Embedder, Injection]]:
    """Models and mismatches without end: kinds in turn, over all models."""
    rng = np.random.default_rng(seed)
    models = [build_embedder(spec, seed + number).eval() for number, spec in enumerate(SPECS)]
    for round_, model in zip(iter(int, 1), cycle(models), strict=False):
        yield from ((model, injection) for injection in _of_each_kind(model, rng, round_))


def _of_each_kind(model: Embedder, rng: np.random.Generator, round_: int) -> Iterator[Injection]:
    plain = as_the_stream_decodes
    yield Injection("channels", _bgr, model)
    for _ in range(2):
        yield Injection("resize", RESIZES[rng.integers(len(RESIZES))], model)
    mean, std = STATISTICS[rng.integers(len(STATISTICS))]
    yield Injection("normalisation", plain, _normalised(model, mean, std))
    yield Injection("checkpoint", plain, build_embedder(model.spec, int(rng.integers(1000, 2**31))).eval())
    yield Injection("checkpoint", plain, _trained_on(model, rng))
    if model.spec.backbone == "mobilenetv2":
        yield Injection("mode", plain, _in_training_mode(model))


def _vectors(wrong: Injection, images: tuple[bytes, ...]) -> NDArray[np.float32]:
    return vectors_of(wrong.model, images, wrong.decode)


def _bgr(image: bytes, size: int) -> Pixels:
    return np.ascontiguousarray(as_the_stream_decodes(image, size)[..., ::-1])


def _opened(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image)).convert("RGB")


def _cropped(image: bytes) -> Image.Image:
    opened = _opened(image)
    side = min(opened.size)
    left, top = (opened.width - side) // 2, (opened.height - side) // 2
    return opened.crop((left, top, left + side, top + side))


def _by_pillow(filter: Image.Resampling, opened: Callable[[bytes], Image.Image]) -> Decode:
    return lambda image, size: np.array(opened(image).resize((size, size), filter), np.uint8)


def _by_torch(mode: str) -> Decode:
    def decode(image: bytes, size: int) -> Pixels:
        pixels = torch.from_numpy(np.array(_cropped(image))).permute(2, 0, 1)[None].float()
        small = F.interpolate(pixels, size=(size, size), mode=mode, align_corners=False)
        return small[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()

    return decode


RESIZES: tuple[Decode, ...] = (
    _by_pillow(Image.Resampling.NEAREST, _cropped),
    _by_pillow(Image.Resampling.BICUBIC, _cropped),
    _by_pillow(Image.Resampling.LANCZOS, _cropped),
    _by_pillow(Image.Resampling.BOX, _cropped),
    _by_pillow(Image.Resampling.BILINEAR, _opened),
    _by_torch("bilinear"),
    _by_torch("bicubic"),
)
STATISTICS = (
    ((0.0,) * 3, (1.0,) * 3),
    ((0.0,) * 3, (1 / 255,) * 3),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)


def _normalised(model: Embedder, mean: tuple[float, ...], std: tuple[float, ...]) -> Embedder:
    other = copy.deepcopy(model)
    other.mean, other.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return other


def _trained_on(model: Embedder, rng: np.random.Generator) -> Embedder:
    """As after some steps of training: every weight by a few percent."""
    other, size = copy.deepcopy(model), rng.uniform(0.01, 0.3)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + size * torch.randn(parameter.shape, generator=generator))
    return other


class _Training(torch.nn.Module):
    """A backbone that stays in training mode whatever it is told."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> _Training:
        super().train(True)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = copy.deepcopy(self.inner)(images)
        return found


def _in_training_mode(model: Embedder) -> Embedder:
    other = copy.deepcopy(model)
    inner = _Training(other.backbone)
    for name in ("prefix_tokens", "pixel_statistics", "default_pooling"):
        setattr(inner, name, getattr(other.backbone, name))
    other.backbone = inner  # type: ignore[assignment]
    return other.train().eval()


def _restarts(folder: Path, seed: int, count: int) -> list[float]:
    """Deviations at so many loads of the models of roots on disk, by new processes."""
    each = -(-count // (len(PROCESSES) * len(SPECS)))
    roots = [str(folder / str(number)) for number in range(len(SPECS))]
    for root, spec in zip(roots, SPECS, strict=True):
        model = build_embedder(spec, seed)
        Store.create(root, model.out_dim, form="exact" if spec.head == "discriminant" else "embedding")
        writer = Writer.claim(root, "benchmark")
        student = embedder_to_bytes(model)
        writer.commit_root({STUDENT: student, CANARIES: canaries_of(student)})
        writer.release()
    deviations: list[float] = []
    for threads in PROCESSES:
        command = [sys.executable, "-m", "benchmarks.doors.canaries", str(threads), str(each), *roots]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        deviations += map(float, done.stdout.split())
    return deviations[:count]


def _load(threads: int, each: int, roots: list[str]) -> None:
    """Print the deviation at each load. One that a process refuses ends it."""
    torch.set_num_threads(threads)
    for root in roots:
        for _ in range(each):
            store = Store.open(root)
            kept = Canaries.from_bytes(store.artifact(store.tree.head, CANARIES))
            print(kept.deviation(vectors_of(load_model(store, store.tree.head), kept.images)))


if __name__ == "__main__":
    _load(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
