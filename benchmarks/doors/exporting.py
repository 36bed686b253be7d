"""ONNX: the largest difference of a vector's entry between onnxruntime and the model, over several networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.common import Report
from benchmarks.doors.made import land_and_learn, means, vector_stream, vectors
from stream_odml.config.stream import parse_config
from stream_odml.exchange.exporting import export
from stream_odml.exchange.rows import Gallery
from stream_odml.learn.embedder import embedder_from_bytes
from stream_odml.pipeline.first_version import open_root
from stream_odml.store.artifacts import STUDENT

QUERIES = 64


def measure_onnx(report: Report, folder: Path, seed: int) -> None:
    """Export vectors only, conv4 and MobileNetV2 (with a lift, too), and compare on other inputs than the check did."""
    roots = {"none": vector_stream(folder / "none", 96)}
    for backbone, lift in (("conv4", 0), ("conv4", 256), ("mobilenetv2", 0)):
        model = {"backbone": backbone, "head": "discriminant", "lift": lift, "image_size": 32}
        name = f"{backbone}+{lift}" if lift else backbone
        roots[name] = parse_config({"root": str(folder / name), "model": model})
    largest = 0.0
    for name, config in list(roots.items())[: 2 if report.quick else None]:
        open_root(config)
        if name == "none":
            labels = np.arange(400) % 20
            land_and_learn(
                config, "task", [f"class {c}" for c in labels], vectors(means(20, 96, seed), labels, seed)
            )
        export(config.root, str(folder / f"{name}-out"), formats=["onnx"])
        gallery = Gallery.load(config.root)
        embedder = embedder_from_bytes(gallery.store.artifact(gallery.version, STUDENT))
        random, side = np.random.default_rng(seed + 7), embedder.spec.image_size
        shape = (QUERIES, embedder.out_dim) if embedder.takes_vectors else (QUERIES, 3, side, side)
        inputs = random.random(shape).astype(np.float32)
        with torch.inference_mode():
            expected = gallery.queries(embedder(torch.from_numpy(inputs)).numpy())
        session = onnxruntime.InferenceSession(str(folder / f"{name}-out" / "model" / "model.onnx"))
        found = session.run(["embedding"], {"input": inputs})[0]
        differ = float(np.abs(found - expected).max())
        report.row(part="onnx", seed=seed, model=name, difference=differ)
        largest = max(largest, differ)
    report.figure("onnx_max_difference", largest)
