"""Trunk and head as one ONNX graph, checked by onnxruntime against the model before a byte of it is written.

Loads torch, and so is imported only where a model is exported.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stream_odml.exchange.errors import ExchangeError, library
from stream_odml.exchange.rows import Gallery
from stream_odml.learn.discriminant import DiscriminantHead
from stream_odml.learn.embedder import Embedder, embedder_from_bytes
from stream_odml.store.artifacts import STUDENT
from stream_odml.wording import first_line

TOLERANCE = 1e-4
"""Largest difference of an entry of a vector of length 1 between ONNX and the model."""
OPSET = 18
_PROBES = 5


class _Head(nn.Module):
    """A discriminant head as it embeds queries, in a layout."""

    known: Tensor
    new: Tensor
    known_shift: Tensor
    new_shift: Tensor
    lift: Tensor

    def __init__(self, head: DiscriminantHead, layout: str) -> None:
        super().__init__()
        self.layout, self.width = layout, head.lift.width
        parts = {"known": head.known_dE, "new": head.new_DD}
        for name, array in parts.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)).float())
        shift = head.known_dE @ head.mean_E, head.new_DD @ head.mean_E[: head.lift.dim]
        self.register_buffer("known_shift", torch.from_numpy(shift[0]).float())
        self.register_buffer("new_shift", torch.from_numpy(shift[1]).float())
        self.register_buffer("lift", torch.from_numpy(head.lift.matrix / 32.0).float())

    def forward(self, h_BD: Tensor) -> Tensor:
        unit_BD = _unit(h_BD / h_BD.abs().amax(dim=1, keepdim=True).clamp_min(1e-30))
        phi_BE = unit_BD
        if self.width:
            phi_BE = torch.cat([unit_BD, torch.relu(unit_BD @ self.lift)], dim=1)
        known_Bd = _unit(phi_BE @ self.known.T - self.known_shift)
        if self.layout == "known":
            return known_Bd
        one_B1 = torch.ones_like(known_Bd[:, :1])
        if self.layout == "shared":
            return torch.cat([known_Bd, one_B1], dim=1)
        new_BD = _unit(unit_BD @ self.new.T - self.new_shift)
        if self.layout == "whole":
            return new_BD
        return torch.cat([known_Bd, new_BD, one_B1], dim=1)


class _Exported(nn.Module):
    def __init__(self, embedder: Embedder, head: DiscriminantHead | None, layout: str) -> None:
        super().__init__()
        self.embedder = embedder
        self.head = _Head(head, layout) if head is not None else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.embedder(x)
        found: Tensor = self.head(out) if self.head is not None else _unit(out)
        return found


def _unit(x_Bd: Tensor) -> Tensor:
    unit_Bd: Tensor = x_Bd / x_Bd.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit_Bd


def onnx_of(gallery: Gallery) -> bytes:
    """Return the served model as ONNX: input `input` [batch, 3, side, side] in 0..1 (or vectors [batch, D]), output
    `embedding`. Raises ExchangeError where onnxruntime gives other vectors than the model."""
    library("onnx", "onnx")
    library("onnxscript", "onnx")
    runtime = library("onnxruntime", "onnx")
    embedder = embedder_from_bytes(gallery.store.artifact(gallery.version, STUDENT))
    model = _Exported(embedder, gallery.head, gallery.layout).eval()
    probes = _probes(embedder)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    model,
                    (probes,),
                    str(path),
                    input_names=["input"],
                    output_names=["embedding"],
                    opset_version=OPSET,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    external_data=False,
                    verbose=False,
                    dynamo=True,
                )
        except Exception as error:  # whatever of torch, onnx or the backbone
            raise ExchangeError(
                f"{embedder.spec.backbone} cannot be written as ONNX: {first_line(error)}; leave `onnx` out of --format"
            ) from error
        data = path.read_bytes()
    _check(runtime, data, gallery, embedder, probes)
    return data


def _probes(embedder: Embedder) -> Tensor:
    random = np.random.default_rng(0)
    if embedder.takes_vectors:
        return torch.from_numpy(random.standard_normal((_PROBES, embedder.out_dim)).astype(np.float32))
    side = embedder.spec.image_size
    return torch.from_numpy(random.random((_PROBES, 3, side, side)).astype(np.float32))


def _check(runtime: Any, data: bytes, gallery: Gallery, embedder: Embedder, probes: Tensor) -> None:
    """Compare with the code that serves, by batches of two sizes."""
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        features = embedder(probes).numpy()
    expected = gallery.queries(features)
    for count in (1, _PROBES):
        found = session.run(["embedding"], {"input": probes[:count].numpy()})[0]
        differ = float(np.abs(found - expected[:count]).max())
        if not differ <= TOLERANCE:
            raise ExchangeError(
                f"onnxruntime gives vectors that differ by {differ:.2g} from the model's, {TOLERANCE:g} is allowed; "
                "nothing was written: use the versions of onnx and torch that constraints.txt names"
            )
