"""Settings of the model and of a stage, with the range of every field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from stream_odml.learn.ranges import Count, NonNegative, Positive, Range, Share, check_fields

Scalar = bool | int | float | str
Pooling = Literal["auto", "mean", "max", "gem", "flatten", "cls"]
KernelName = Literal["cosine", "clamped", "softmax", "gaussian"]
GalleryMap = Literal["identity", "affine", "kernel", "affine+kernel"]
Precision = Literal["fp32", "bf16"]
HeadKind = Literal["discriminant", "linear", "none"]
TrunkRule = Literal["auto", "frozen", "distilled"]

NO_BACKBONE = "none"
"""The backbone of a stream of vectors."""
LIFT, FEW_FEATURES = 2048, 512
"""Random features that a discriminant head may take beside so few pooled ones."""

_PYDANTIC: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class EmbedderSpec:
    """Names one architecture: everything needed to build the same embedder again."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _PYDANTIC

    backbone: str = "conv4"
    """`conv4`, `mobilenetv2`, `transformers:<name or folder>` or `timm:<name>`; `none`: a stream of vectors, which come
    in place of images, from an embedding service of yours."""
    dim: Annotated[int, Range(at_least=1)] = 128
    """Length of the embedding; with `head: none` it must equal the backbone's pooled features. With
    `head: discriminant`: the greatest length of the part by which known classes are compared."""
    image_size: Annotated[int, Range(at_least=8, under=4097)] = 32
    """Side of the square input, in pixels, at most 4096."""
    weights: str | None = None
    """A safetensors file with the backbone's pretrained weights, or nothing."""
    pretrained: bool = False
    """Load the weights that a `transformers:` or `timm:` name stands for."""
    pooling: Pooling = "auto"
    """How the feature map becomes one vector; `auto`: flatten for conv4, cls for tokens, else mean."""
    head: HeadKind = "linear"
    """`discriminant`: solved in closed form from sums of all that was learnt, in seconds and without training; the
    gallery stores pooled features and follows it exactly. A configuration that names no head has this one, but for a
    `method` that trains. `linear`: a layer to `dim`, trained with the backbone. `none`: pooled features as they are."""
    lift: Count | None = None
    """Random features beside the pooled ones, for a `discriminant` head: it takes them where images left out of its
    solution are found better by them. null: 2048 beside fewer than 512 pooled features (`conv4`), else none. Of a root
    that exists it cannot change."""
    normalisation: Literal["auto", "imagenet", "symmetric", "none"] = "auto"
    """Of the pixels: ImageNet's mean and deviation, to -1..1, or left at 0..1; `auto`: what the backbone wants."""
    input_dim: Count = 0
    """With `backbone: none`: length of the vectors; 0: that of the stream root, if there is one."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.lift and self.head != "discriminant":
            raise ValueError(
                f"lift: {self.lift} random features with head {self.head!r}; only `head: discriminant` takes them"
            )
        if self.takes_vectors and self.head != "discriminant":
            raise ValueError(
                f"backbone: none with head {self.head!r}; vectors are learnt from by `head: discriminant` alone"
            )
        if self.takes_vectors and self.starts_pretrained:
            raise ValueError("backbone: none has no weights; leave out `weights` and `pretrained`")
        if self.input_dim and not self.takes_vectors:
            raise ValueError(
                f"input_dim: {self.input_dim} with backbone {self.backbone!r}, which takes images; only "
                "`backbone: none` takes vectors"
            )
        if self.pretrained and ":" not in self.backbone:
            raise ValueError(
                f"pretrained: true, but backbone {self.backbone!r} has no weights by name; "
                "name a file in `weights`, or use a `transformers:` or `timm:` backbone"
            )

    @property
    def takes_vectors(self) -> bool:
        """Return whether vectors come in place of images: the trunk is the identity."""
        return self.backbone == NO_BACKBONE

    def lift_of(self, features: int) -> int:
        """Return how many random features stand beside so many pooled ones."""
        if self.lift is not None:
            return self.lift
        return LIFT if features < FEW_FEATURES else 0

    @property
    def starts_pretrained(self) -> bool:
        """Return whether a freshly built embedder starts from learnt weights."""
        return self.pretrained or self.weights is not None


@dataclass(frozen=True)
class StageSettings:
    """How a stage is learnt. The defaults are the methods `ours` and `distilled`. The loss that the weights belong to,
    and its symbols, are in `learn/losses.py`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _PYDANTIC

    trunk: TrunkRule = "auto"
    """What is in front of a `discriminant` head. `frozen`: the trunk stays as it starts, where that is from pretrained
    weights; from nothing it is learnt in the first stage. `distilled`: learnt in the first stage and, after the head
    has been solved within seconds, moved by the images of later tasks, where that serves more. `auto`: the same, but
    only once a tenth of the known classes are new to the trunk and, if it began with pretrained weights, it tells them
    apart by far less than the others (the measure is in `learn/trunk_gap.py`), and where images are held out
    (`evaluation.held_out`) to show what is won: with none it never moves. Images by which it did not serve more are
    tried again together with later ones, while they are there. Other heads are learnt with their trunk every time."""

    choice_growth: NonNegative = 0.25
    """Share by which classes or items have to grow (or shrink) until the settings of a `discriminant` head are chosen
    again. Before that a task is learnt with those of its parent, in a fraction of the time; 0 chooses every time."""

    metric_loss: str = "supcon"
    """`hard_pairs`, `binomial`, `supcon`, `pml:<class of pytorch_metric_learning.losses>`, or `module:Class` of your
    own, see `examples/own_loss.py`."""
    metric_loss_args: dict[str, Scalar] = field(default_factory=dict)
    """Arguments of the metric loss, by name."""
    miner: str | None = None
    """A class of pytorch_metric_learning.miners, for a `pml:` loss."""
    miner_args: dict[str, Scalar] = field(default_factory=dict)
    """Arguments of the miner, by name."""

    weight_old: NonNegative = 10.0
    """Weight of relation distillation from the old model, lambda_old."""
    weight_virtual: NonNegative = 10.0
    """Weight of relation distillation from the virtual features of still older models, lambda_virtual."""
    weight_peer: NonNegative = 1.0
    """Weight of mutual distillation with the peer, mu; 0 builds no peer."""
    weight_distill: NonNegative = 5.0
    """Weight of feature distillation: the squared distance of the student's embeddings from the old model's, in units
    of their mean squared length."""
    weight_composites: NonNegative = 0.3
    """Weight of feature distillation on cut-mix composites of the batch: images of no class, which stand for all that
    is not in the task. Multiplied by sqrt(bank entries / new classes), as Hou et al. (CVPR 2019) weigh what must not
    change; 0 for none."""
    composite_every: Annotated[int, Range(at_least=1)] = 2
    """A composite is made of every n-th image of the batch."""
    weight_hold: NonNegative = 10.0
    """Weight of feature distillation under a `discriminant` head, in place of the two before: of pooled features, on
    the batch and on its composites alike. As every stored feature has to follow the trunk by a map, 0 loses the
    gallery; at 50 a trunk hardly learns (`benchmarks/STUDY.md`)."""
    weight_hold_renewed: NonNegative = 3.0
    """The same in place of `weight_hold` where all that is stored is embedded anew once the trunk has moved, as its
    images are at hand (`store.renew_per_s`) and some are held out (`evaluation.held_out`): the map has to serve for
    that long alone."""
    weight_repel: NonNegative = 0.0
    """Weight of the bank's class directions as negatives of the new images; 0.3 may help a task of many new classes,
    and costs a task of few (`benchmarks/EARLIER.md`)."""
    temperature: Positive = 4.0
    """Temperature tau of the relations: larger values flatten the rows of the Gram matrices."""
    virtual: Literal["kernel", "affine"] = "kernel"
    """Estimate virtual features from the bank by kernel, or by composed backward maps."""
    kernel: KernelName = "softmax"
    """Weighs images by their similarity to a class direction (bank) or to a vector (gallery)."""
    kernel_width: Positive = 0.05
    """Temperature of the softmax kernel, or sigma of the Gaussian one."""
    kernel_floor: Share = 0.05
    """Ratio of sum(w) to sum(|w|) below which a kernel estimate falls back to the mean drift."""
    kernel_pairs: Annotated[int, Range(at_least=1)] = 2048
    """Maximum (vector, drift) pairs per kernel map."""
    gallery_map: GalleryMap = "affine"
    """Kind of the drift map, by which stored vectors follow the model."""
    ridge: NonNegative | None = None
    """Strength of the affine map's pull towards the identity, in units of the embedding's mean variance; null chooses
    the one with the least error on held-out classes."""
    map_composites: Count = 6
    """Composites per image that the affine map is fitted to as well, at most 16,384 in all."""
    old_share: Share = 0.1
    """Share of the old weights averaged into the student at the end of the stage: costs little recall on new classes,
    and makes the drift smaller that the gallery's map must follow."""

    whitening: Share = 0.25
    """Share of the within-class covariance by which the first stage's embedding is whitened, once, in the head; 0 for
    none, and none without a linear head. Worth one to three points of recall (`benchmarks/EARLIER.md`)."""

    error_whitening: NonNegative = 6.0
    """Strength k of every later stage's whitening, W ~ (I + k E / v)^(-1/2): E the error of the affine gallery map on
    held-out classes, v the embedding's mean variance, E's share at most a quarter. Scales down the directions in which
    mapped vectors are wrong. 0 for none; none without a linear head, an affine map, or classes to hold out."""

    base_steps: Count = 600
    """Steps of the first stage (empty bank)."""
    stage_steps: Count = 200
    """Steps of every later stage; of one that moves the trunk by several tasks, for each of them."""
    classes_per_batch: Annotated[int, Range(at_least=2)] = 16
    """P of the P x K global batch. With one class there is no negative pair."""
    images_per_class: Annotated[int, Range(at_least=2)] = 5
    """K of the P x K global batch. With one image there is no positive pair."""
    base_learning_rate: NonNegative = 1e-3
    """Adam's learning rate in the first stage; 3e-4 where a configuration names pretrained weights and no rate."""
    learning_rate: NonNegative = 2e-4
    """Adam's learning rate in later stages; 1e-4 where a configuration names pretrained weights and no rate."""
    renewed_learning_rate_factor: NonNegative = 3.0
    """Ratio of the learning rate to `learning_rate` where all that is stored is embedded anew once the trunk has moved,
    as for `weight_hold_renewed`. A trunk that learns so much no map could follow for long."""
    head_learning_rate_factor: NonNegative = 1.0
    """Ratio of the head's learning rate to the backbone's."""
    peer_learning_rate_factor: NonNegative = 1.0
    """Ratio of the peer's learning rate to the student's."""
    weight_decay: NonNegative = 5e-4
    """Adam's weight decay, on weights of two dimensions or more."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Schedule of the learning rate after the warm-up."""
    warmup_steps: Count = 10
    """Steps over which the learning rate rises from zero."""

    augment: NonNegative = 1.0
    """Strength of random rotation, shift and zoom; 0 for none."""
    augment_colour: NonNegative = 0.0
    """Strength of random brightness, contrast and saturation; 0 for none."""
    augment_flip: bool = False
    """Mirror half of the images (never for characters)."""
    precision: Precision = "fp32"
    """Precision of student and peer; bf16 is autocast, weights stay fp32."""
    old_precision: Precision = "fp32"
    """Precision of the old model."""
    peer_every: Annotated[int, Range(at_least=1)] = 5
    """The peer learns and distils on every n-th batch only. At 5 recall is the same as at 1, and a step without
    composites costs 1.5 times a fine-tune's (`python -m benchmarks.training`)."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.miner is not None and not self.metric_loss.startswith("pml:"):
            raise ValueError(f"miner {self.miner!r} needs a `pml:` metric_loss, got {self.metric_loss!r}")


_ALONE: dict[str, Any] = {
    "weight_old": 0.0,
    "weight_virtual": 0.0,
    "weight_peer": 0.0,
    "weight_distill": 0.0,
    "weight_composites": 0.0,
    "weight_hold": 0.0,
    "weight_repel": 0.0,
    "map_composites": 0,
    "old_share": 0.0,
    "whitening": 0.0,
    "error_whitening": 0.0,
}
_SDC: dict[str, Any] = {"gallery_map": "kernel", "kernel": "gaussian", "kernel_width": 0.3}

METHODS: Mapping[str, Mapping[str, Any]] = {
    "ours": {},
    "distilled": {},
    "faithful": {
        **_ALONE, "weight_old": 10.0, "weight_virtual": 10.0, "weight_peer": 1.0,
        "virtual": "kernel", "kernel": "cosine", "metric_loss": "hard_pairs", "peer_every": 1,
    },
    "no_peer": {"weight_peer": 0.0},
    "no_virtual": {"weight_virtual": 0.0},
    "no_composites": {"weight_composites": 0.0, "map_composites": 0},
    "no_average": {"old_share": 0.0},
    "no_error_whitening": {"error_whitening": 0.0},
    "no_whitening": {"whitening": 0.0, "error_whitening": 0.0},
    "repel": {"weight_repel": 0.3},
    "lean": {"weight_old": 0.0, "weight_virtual": 0.0, "weight_peer": 0.0},
    "fecd": {**_ALONE, "weight_old": 10.0, "metric_loss": "hard_pairs"},
    "relation": {**_ALONE, "weight_old": 10.0},
    "l2": {**_ALONE, "weight_distill": 5.0},
    "sdc_l2": {**_ALONE, **_SDC, "weight_distill": 5.0},
    "sdc_finetune": {**_ALONE, **_SDC},
    "finetune": _ALONE,
    "frozen_f0": {**_ALONE, "stage_steps": 0, "gallery_map": "identity"},
    "frozen_pretrained": {**_ALONE, "base_steps": 0, "stage_steps": 0, "gallery_map": "identity"},
    "joint": _ALONE,
}  # fmt: skip
"""The fields of StageSettings that each method changes.

`ours`, the default, solves the head, all others train one; `distilled` learns every task by mutual distillation.
`joint` is a fine-tune whose caller feeds every image so far. `lean` has feature distillation, composites and averaged
weights alone: it costs a fine-tune, half as many images again, and the old model's forward passes.
"""

SOLVING_METHODS = frozenset({"ours"})
"""Methods whose head is `discriminant` where a configuration names none; that of all others is `linear`."""

RENAMED: Mapping[str, str] = {
    "weight_anchor": "weight_distill",
    "weight_wide": "weight_composites",
    "wide_every": "composite_every",
    "map_views": "map_composites",
    "kernel_anchors": "kernel_pairs",
}
"""Fields of StageSettings by their earlier names, which a configuration may still use for one release."""

RENAMED_METHODS: Mapping[str, str] = {"no_wide": "no_composites"}
"""The same of METHODS."""

PRETRAINED: Mapping[str, Any] = {
    "base_learning_rate": 3e-4,
    "learning_rate": 1e-4,
}
"""Defaults for a model that starts from pretrained weights: at the rates for a new model a short first stage destroys
what they know (`benchmarks/EARLIER.md`)."""


def renewed(settings: StageSettings) -> StageSettings:
    """Return the settings of a stage after which all that is stored is embedded anew."""
    rate = settings.learning_rate * settings.renewed_learning_rate_factor
    return replace(settings, weight_hold=settings.weight_hold_renewed, learning_rate=rate)


def method_settings(method: str, settings: StageSettings | None = None) -> StageSettings:
    """Return `settings`, by default StageSettings(), with the changes of a method. Raises ValueError for its name."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    return replace(settings or StageSettings(), **METHODS[method])
