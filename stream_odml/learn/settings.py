"""What a user may set of the model and of a stage. Every range is checked here, so that no other file
has to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

Scalar = bool | int | float | str
Pooling = Literal["auto", "mean", "max", "gem", "flatten", "cls"]
KernelName = Literal["cosine", "clamped", "softmax", "gaussian"]
GalleryMap = Literal["identity", "affine", "kernel", "affine+kernel"]
Precision = Literal["fp32", "bf16"]

_PYDANTIC: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class EmbedderSpec:
    """Names one architecture: everything needed to build the same embedder again."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _PYDANTIC

    backbone: str = "conv4"
    """`conv4`, `mobilenetv2`, `transformers:<name or folder>` or `timm:<name>`."""
    dim: int = 128
    """Length of the embedding; with `head: none` it must equal the backbone's pooled features."""
    image_size: int = 32
    """Side of the square input, in pixels."""
    weights: str | None = None
    """A safetensors file with the backbone's pretrained weights, or nothing."""
    pretrained: bool = False
    """Load the weights that a `transformers:` or `timm:` name stands for."""
    pooling: Pooling = "auto"
    """How the feature map becomes one vector; `auto`: flatten for conv4, cls for tokens, else mean."""
    head: Literal["linear", "none"] = "linear"
    """A linear layer to `dim`, or the pooled features themselves."""
    normalisation: Literal["auto", "imagenet", "symmetric", "none"] = "auto"
    """Of the pixels: ImageNet's mean and deviation, to -1..1, or left at 0..1; `auto`: what the
    backbone wants."""

    def __post_init__(self) -> None:
        _at_least("dim", self.dim, 1)
        _at_least("image_size", self.image_size, 8)
        _one_of("pooling", self.pooling, ("auto", "mean", "max", "gem", "flatten", "cls"))
        _one_of("head", self.head, ("linear", "none"))
        _one_of("normalisation", self.normalisation, ("auto", "imagenet", "symmetric", "none"))
        if self.pretrained and ":" not in self.backbone:
            raise ValueError(
                f"pretrained: true, but backbone {self.backbone!r} has no weights by name; "
                "name a file in `weights`, or use a `transformers:` or `timm:` backbone"
            )

    @property
    def starts_pretrained(self) -> bool:
        """Whether a freshly built embedder starts from learnt weights."""
        return self.pretrained or self.weights is not None


@dataclass(frozen=True)
class StageSettings:
    """How a stage is learnt. The defaults are the method `ours`; symbols as in the paper's loss

    L = L_M(S) + L_M(N) + old C(S,O) + peer/2 [C(N,S) + C(S,N)] + virtual sum_k C(S,V_k) + anchor |g_S-g_O|^2
        + wide |g_S-g_O|^2 on wide views + repel R(S, bank)
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _PYDANTIC

    metric_loss: str = "supcon"
    """`hard_pairs`, `binomial`, `supcon`, or `pml:<class of pytorch_metric_learning.losses>`."""
    metric_loss_args: dict[str, Scalar] = field(default_factory=dict)
    """Arguments of the metric loss, by name."""
    miner: str | None = None
    """A class of pytorch_metric_learning.miners, for a `pml:` loss."""
    miner_args: dict[str, Scalar] = field(default_factory=dict)
    """Arguments of the miner, by name."""

    weight_old: float = 10.0
    """lambda_old: relation distillation from the old model."""
    weight_virtual: float = 10.0
    """lambda_virtual: relation distillation from the virtual features of still older models."""
    weight_peer: float = 1.0
    """mu: mutual distillation with the peer; 0 builds no peer."""
    weight_anchor: float = 5.0
    """Weight of the squared distance between the student's and the old model's embeddings, in units of the mean squared
    length of the old."""
    weight_wide: float = 0.3
    """Weight of the same on wide views of the batch: images of no class, turned, cut and joined, which
    stand for all that is not in the task. Times sqrt(bank entries / new classes), as Hou et al. (CVPR 2019)
    weigh what must not change; 0 for none."""
    wide_every: int = 2
    """A wide view of every n-th image of the batch."""
    weight_repel: float = 0.0
    """Weight of the bank's class directions as negatives of the new images; 0.3 may help a task of many new classes,
    and costs a task of few (`benchmarks/STUDY.md`)."""
    temperature: float = 4.0
    """tau: softens the rows of the Gram matrices."""
    virtual: Literal["kernel", "affine"] = "kernel"
    """How virtual features are estimated: from the bank by kernel, or by composed backward maps."""
    kernel: KernelName = "softmax"
    """Weighs images by their likeness to a class direction (bank) or to a vector (gallery)."""
    kernel_width: float = 0.05
    """Temperature of the softmax kernel, or sigma of the Gaussian one."""
    kernel_floor: float = 0.05
    """Under this ratio of sum(w) to sum(|w|) a kernel estimate falls back to the mean drift."""
    kernel_anchors: int = 2048
    """At most so many (vector, drift) pairs are kept in a kernel map."""
    gallery_map: GalleryMap = "affine"
    """How stored vectors follow the model."""
    ridge: float | None = None
    """Pull of the affine map towards the identity, in units of the embedding's mean variance; null: the one
    that serves classes left out of the fit best."""
    map_views: int = 6
    """The affine map is fitted to so many wide views of each image as well, at most 16,384 in all."""
    old_share: float = 0.1
    """Share of the old weights averaged into the student at the end of the stage: little is lost of what was learnt,
    and the drift that the gallery's map must follow is smaller."""

    whitening: float = 0.25
    """Share of the covariance within classes by which the first stage's embedding is whitened, once, in the head; 0 for
    none, and none without a linear head. Worth one to three points of recall (`benchmarks/STUDY.md`)."""

    error_whitening: float = 6.0
    """k of every later stage's whitening, W ~ (I + k E / v)^(-1/2): E what the affine gallery map misses on classes
    held out of its fit, v the embedding's mean variance, E's share a quarter at most. Directions in which stored
    vectors go wrong count for less. 0 for none; none without a linear head, an affine map, or classes enough to hold
    any out."""

    base_steps: int = 600
    """Steps of the first stage (empty bank)."""
    stage_steps: int = 200
    """Steps of every later stage."""
    classes_per_batch: int = 16
    """P of the P x K global batch."""
    images_per_class: int = 5
    """K of the P x K global batch."""
    base_learning_rate: float = 1e-3
    """Adam's, in the first stage; 3e-4 where a configuration names pretrained weights and no rate."""
    learning_rate: float = 2e-4
    """Adam's, in later stages; 1e-4 where a configuration names pretrained weights and no rate."""
    head_learning_rate_factor: float = 1.0
    """The head's learning rate over the backbone's."""
    peer_learning_rate_factor: float = 1.0
    """The peer's learning rate over the student's."""
    weight_decay: float = 5e-4
    """Adam's, on weights of two dimensions or more."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the learning rate, after the warm-up."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises from zero."""

    augment: float = 1.0
    """Strength of random rotation, shift and zoom; 0 for none."""
    augment_colour: float = 0.0
    """Strength of random brightness, contrast and saturation; 0 for none."""
    augment_flip: bool = False
    """Mirror half of the images (never for characters)."""
    precision: Precision = "fp32"
    """Of the student and the peer; bf16 is autocast, weights stay fp32."""
    old_precision: Precision = "fp32"
    """Of the old model."""
    peer_every: int = 5
    """The peer learns and distils on every n-th batch only, at the same recall as on every one: without wide views a
    step then costs 1.5 times a fine-tune's (`python -m benchmarks.training`)."""

    def __post_init__(self) -> None:
        weights = ("old", "virtual", "peer", "anchor", "wide", "repel")
        for name in (*(f"weight_{part}" for part in weights), "weight_decay", "map_views", "error_whitening"):
            _at_least(name, getattr(self, name), 0)
        _at_least("ridge", 0.0 if self.ridge is None else self.ridge, 0)
        for name in ("base_learning_rate", "learning_rate", "head_learning_rate_factor", "augment"):
            _at_least(name, getattr(self, name), 0)
        for name in (
            "peer_learning_rate_factor",
            "augment_colour",
            "base_steps",
            "stage_steps",
            "warmup_steps",
        ):
            _at_least(name, getattr(self, name), 0)
        for name in ("peer_every", "wide_every", "kernel_anchors"):
            _at_least(name, getattr(self, name), 1)
        for name in (
            "classes_per_batch",
            "images_per_class",
        ):  # with one there is no pair to tell apart, or none alike
            _at_least(name, getattr(self, name), 2)
        for name in ("temperature", "kernel_width"):
            _positive(name, getattr(self, name))
        for name in ("kernel_floor", "old_share", "whitening"):
            _share(name, getattr(self, name))
        _one_of("virtual", self.virtual, ("kernel", "affine"))
        _one_of("kernel", self.kernel, ("cosine", "clamped", "softmax", "gaussian"))
        _one_of("gallery_map", self.gallery_map, ("identity", "affine", "kernel", "affine+kernel"))
        _one_of("schedule", self.schedule, ("cosine", "constant"))
        for name in ("precision", "old_precision"):
            _one_of(name, getattr(self, name), ("fp32", "bf16"))
        if self.miner is not None and not self.metric_loss.startswith("pml:"):
            raise ValueError(f"miner {self.miner!r} needs a `pml:` metric_loss, got {self.metric_loss!r}")


_ALONE: dict[str, Any] = {
    "weight_old": 0.0,
    "weight_virtual": 0.0,
    "weight_peer": 0.0,
    "weight_anchor": 0.0,
    "weight_wide": 0.0,
    "weight_repel": 0.0,
    "map_views": 0,
    "old_share": 0.0,
    "whitening": 0.0,
    "error_whitening": 0.0,
}
_SDC: dict[str, Any] = {"gallery_map": "kernel", "kernel": "gaussian", "kernel_width": 0.3}

METHODS: Mapping[str, Mapping[str, Any]] = {
    "ours": {},
    "faithful": {
        "weight_old": 10.0, "weight_virtual": 10.0, "weight_peer": 1.0, "weight_anchor": 0.0,
        "weight_wide": 0.0, "weight_repel": 0.0, "map_views": 0, "old_share": 0.0, "whitening": 0.0,
        "error_whitening": 0.0, "virtual": "kernel", "kernel": "cosine", "metric_loss": "hard_pairs", "peer_every": 1,
    },
    "no_peer": {"weight_peer": 0.0},
    "no_virtual": {"weight_virtual": 0.0},
    "no_wide": {"weight_wide": 0.0, "map_views": 0},
    "no_average": {"old_share": 0.0},
    "no_error_whitening": {"error_whitening": 0.0},
    "no_whitening": {"whitening": 0.0, "error_whitening": 0.0},
    "repel": {"weight_repel": 0.3},
    "lean": {"weight_old": 0.0, "weight_virtual": 0.0, "weight_peer": 0.0},
    "fecd": {**_ALONE, "weight_old": 10.0},
    "l2": {**_ALONE, "weight_anchor": 5.0},
    "sdc_l2": {**_ALONE, **_SDC, "weight_anchor": 5.0},
    "sdc_finetune": {**_ALONE, **_SDC},
    "finetune": _ALONE,
    "frozen_f0": {**_ALONE, "stage_steps": 0, "gallery_map": "identity"},
    "frozen_pretrained": {**_ALONE, "base_steps": 0, "stage_steps": 0, "gallery_map": "identity"},
    "joint": _ALONE,
}  # fmt: skip
"""What each method changes of a StageSettings. `joint` is a fine-tune whose caller feeds every image
so far; `lean` is anchors, wide views and averaged weights alone: the old model's forward passes and half as many images
again, beside a fine-tune."""

PRETRAINED: Mapping[str, Any] = {"base_learning_rate": 3e-4, "learning_rate": 1e-4}
"""Laid over the defaults where a model starts from learnt weights: at the rates for a new model a short first stage
spoils them (`benchmarks/STUDY.md`)."""


def method_settings(method: str, settings: StageSettings | None = None) -> StageSettings:
    """`settings` (default: StageSettings()) with the changes of METHODS[method]; ValueError for an
    unknown name."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    return replace(settings or StageSettings(), **METHODS[method])


def _at_least(name: str, value: float, least: float) -> None:
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name}: {value!r}, expected a finite number of at least {least}")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: {value!r}, expected a finite number above 0")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: {value!r}, expected at least 0 and under 1")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: {value!r}, expected one of {', '.join(choices)}")
