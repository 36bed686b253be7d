"""One stage: a student, its frozen parent and a fresh peer over the images of one task, and of no other.

Every step is a pure function of (state, batch, seed, step): on a CPU a stage resumed from `state_dict` continues to the
same bits. No image of an earlier task and no model older than the parent is used.
"""

# b rows of this rank   B global batch   d embedding

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stream_odml.learn.augment import augment, step_seed
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.composites import composites_of_batch, counts_of_composites, last_pass_composites
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.embedder import Embedder, as_images, training_layer, trunk_of, with_training_head
from stream_odml.learn.finish import FinishPass, StageDiverged, StageOutcome
from stream_odml.learn.losses import OLD_MODEL_TERMS, stage_losses
from stream_odml.learn.metric_losses import build_metric_loss
from stream_odml.learn.networks import across_ranks, build_networks, freeze
from stream_odml.learn.optimiser import build_optimiser, schedule
from stream_odml.learn.row_buffer import InMemoryBuffer, NewBuffer
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.virtual import VirtualFeatures
from stream_odml.learn.world import World

__all__ = ["StageDiverged", "StageLearner", "StageOutcome", "StepReport"]
_OLD_IMAGES_AT_ONCE = 24
"""Images that the old model embeds at once on a CPU: the activations of a layer then stay in the cache."""
Batch = tuple[NDArray[np.uint8] | Tensor, NDArray[np.int64] | Tensor, NDArray[np.int64] | Tensor]
"""Pixels uint8 [n,H,W,3], labels [n] and indices [n] of n images of a task."""


@dataclass(frozen=True)
class StepReport:
    """Weighted loss terms of one step, with their sum as `total`."""

    losses: dict[str, float]
    step: int


class StageLearner:
    """Learns one task: call `.step` total_steps times on every rank, then `.finish` once."""

    def __init__(
        self,
        settings: StageSettings,
        old: Embedder,
        bank: ClassBank,
        *,
        n_classes: int,
        version_id: str,
        seed: int,
        world: World | None = None,
        backward_maps: Mapping[str, DriftMap] | None = None,
        moves_trunk: bool = False,
    ) -> None:
        """Build the networks of a stage. Raises ValueError where the arguments do not fit together.

        Args:
            settings: How the stage is learnt.
            old: The parent model; it is copied.
            bank: The parent's class bank; an empty one makes this the base stage, which has L_M only. A discriminant
                head has none: it is always empty there.
            n_classes: Labels of this task are 0..n_classes-1.
            version_id: Id of the model to be made, the origin version of the new classes.
            seed: Seed of initialisation, augmentation and composites.
            world: Ranks of this stage; by default those of the process group.
            backward_maps: Needed for virtual='affine' only, see `VirtualFeatures`.
            moves_trunk: Under a discriminant head, whether this is a later stage: the old trunk is distilled.
        """
        if bank.dim != old.out_dim:
            raise ValueError(
                f"bank of dimension {bank.dim} with an embedder of {old.out_dim}; they must be one version's"
            )
        if n_classes < 1:
            raise ValueError(f"n_classes: {n_classes}, expected at least 1")
        if moves_trunk and old.spec.head != "discriminant":
            raise ValueError(
                f"moves_trunk with head {old.spec.head!r}; only a discriminant head has a trunk of its own"
            )
        if moves_trunk:
            # Without a bank older trunks are known by their maps alone.
            settings = replace(settings, virtual="affine")
        self.settings, self.bank, self.version_id, self.seed = settings, bank, version_id, seed
        self.world = world or World.current()
        self.is_base = len(bank) == 0 and not moves_trunk
        self._moves_trunk = moves_trunk
        self.total_steps = settings.base_steps if self.is_base else settings.stage_steps
        self.next_step = 0
        self._n_classes = n_classes
        self._rate = settings.base_learning_rate if self.is_base else settings.learning_rate
        self._build(old, {} if backward_maps is None else backward_maps)

    def _build(self, old: Embedder, backward_maps: Mapping[str, DriftMap]) -> None:
        s, device = self.settings, self.world.device
        self.old = freeze(old, device)
        learnt = with_training_head(old, self.seed) if old.spec.head == "discriminant" else old
        self.networks = build_networks(learnt, s, base=self.is_base, seed=self.seed, world=self.world)
        self.networks.student.shows_features = self._moves_trunk
        names = ["student"] + (["peer"] if self.networks.peer is not None else [])
        losses = [build_metric_loss(s, self._n_classes, old.spec.dim, step_seed(self.seed, 2)) for _ in names]
        self._metric = nn.ModuleDict(dict(zip(names, losses, strict=True))).to(device)
        # The more old classes there are to each new one, the more can be forgotten.
        old_to_new = (len(self.bank) / self._n_classes) ** 0.5
        self._weights = replace(s, weight_composites=s.weight_composites * old_to_new)
        repels = s.weight_repel > 0 and not self.is_base
        self._directions = torch.from_numpy(self.bank.directions).to(device) if repels else None
        self._virtual = None if self.is_base else VirtualFeatures(self.bank, s, backward_maps, device)
        compares = any(getattr(s, weight) for weight in OLD_MODEL_TERMS)
        self._needs_old = not self.is_base and (compares or bool(self._virtual))
        self._parallel = across_ranks(self.networks, self.world)
        self._optimiser = build_optimiser(self.networks, self._metric, s)

    def step(self, pixels_bHW3: Tensor, labels_b: Tensor) -> StepReport:
        """Take one optimiser step on this rank's slice of the global batch (uint8 pixels, int64 labels). Raises
        StageDiverged where the loss is not finite: on every rank alike, before any weight is changed; ValueError for
        what are not as many images as labels."""
        step, world = self.next_step, self.world
        if step >= self.total_steps:
            raise ValueError(f"step {step} of a stage of {self.total_steps}; call finish")
        if not (torch.is_tensor(pixels_bHW3) and torch.is_tensor(labels_b)) or len(pixels_bHW3) != len(
            labels_b
        ):
            raise ValueError(
                f"{type(pixels_bHW3).__name__} of {len(pixels_bHW3)} images with {type(labels_b).__name__} of "
                f"{len(labels_b)} labels; expected tensors of as many (torch.from_numpy makes one of an array)"
            )
        counts = world.counts(len(labels_b))
        start, total = sum(counts[: world.rank]), sum(counts)
        labels_B = world.gather(labels_b.to(world.device), counts)
        images = as_images(pixels_bHW3, world.device)
        images = augment(images, self.settings, self.seed, step, start=start, total=total)
        with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
            # For dropout inside a named backbone.
            self._reseed(3, step, world.rank)
            seen = self._with_composites(images, step, start=start, total=total)
            student_Bd, features_BD, peer_Bd, old_Bd, composites = self._embed(
                seen, len(images), step, counts
            )
            # For miners that draw: the same on every rank.
            self._reseed(4, step)
            losses = stage_losses(
                self._weights,
                self._metric,
                labels_B,
                student_Bd,
                peer_Bd=peer_Bd,
                old_Bd=old_Bd,
                virtual=self._virtual,
                directions_Cd=self._directions,
                composites=composites,
                features_BD=features_BD,
            )
            report = self._report(losses, step)
            self._descend(sum(losses.values(), torch.zeros((), device=world.device)), step)
        self.next_step = step + 1
        return report

    def _reseed(self, *parts: int) -> None:
        """Seed torch; its own manual_seed is slow, as it formats the stack for each kind of absent accelerator."""
        seed = step_seed(self.seed, *parts)
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _with_composites(self, images_b3SS: Tensor, step: int, *, start: int, total: int) -> Tensor:
        """Return this rank's images, and behind them its cut-mix composites; none in the base stage."""
        if self.is_base or not self.settings.weight_composites:
            return images_b3SS
        composites = composites_of_batch(
            images_b3SS, self.settings, self.seed, step, start=start, total=total
        )
        return torch.cat([images_b3SS, composites]).contiguous(memory_format=torch.channels_last)

    def _embed(
        self, seen: Tensor, b: int, step: int, counts: list[int]
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, tuple[Tensor, Tensor] | None]:
        """Return g of S, its h where a trunk is moved, g of N and of O (there h) for the global batch; and what S and O
        give for its composites, of the same kind.

        `seen`: b images of this rank, then its composites. One exchange for the batch, another for the composites.
        """
        with_peer = self.networks.peer is not None and step % self.settings.peer_every == 0
        student, peer_bd = self._parallel(seen, b if with_peer else 0)
        # Cloned out of inference mode, so that the loss may save it for its backward pass.
        old = self._old_embeddings(seen).clone() if self._needs_old else None
        parts = [part[:b] for part in (student, peer_bd, old) if part is not None]
        widths, d = [part.shape[1] for part in parts], self.old.spec.dim
        shown, *others = torch.split(self.world.gather(torch.cat(parts, dim=1), counts), widths, dim=1)
        old_Bd = others.pop() if old is not None else None
        peer_Bd = others.pop() if peer_bd is not None else None
        composites = None
        if old is not None and self.settings.weight_composites:
            of_ranks = counts_of_composites(counts, self.settings.composite_every)
            both = self.world.gather(torch.cat([student[b:], old[b:]], dim=1), of_ranks)
            skipped = d if self._moves_trunk else 0
            composites = (both[:, skipped : student.shape[1]], both[:, student.shape[1] :])
        return shown[:, :d], shown[:, d:] if self._moves_trunk else None, peer_Bd, old_Bd, composites

    def _old_embeddings(self, images: Tensor) -> Tensor:
        bf16 = self.settings.old_precision == "bf16"
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            at_once = _OLD_IMAGES_AT_ONCE if images.device.type == "cpu" else max(len(images), 1)
            return torch.cat([self.old(part) for part in torch.split(images, at_once)])

    def _report(self, losses: dict[str, Tensor], step: int) -> StepReport:
        values = torch.stack([loss.detach().double() for loss in losses.values()]).tolist()
        terms = dict(zip(losses, values, strict=True))
        if not all(abs(value) < float("inf") for value in values):
            raise StageDiverged(
                f"loss at step {step} is {terms}, expected finite numbers; lower learning_rate "
                f"(now {self._rate:g}), raise warmup_steps, or check the task's images, then learn it again"
            )
        return StepReport({"total": sum(values), **terms}, step)

    def _descend(self, loss: Tensor, step: int) -> None:
        self._optimiser.zero_grad()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step(self._rate * schedule(self.settings, step, self.total_steps))

    def state_dict(self) -> dict[str, Tensor]:
        """Return progress within the stage: with the constructor's arguments, enough to continue to the same bits."""
        state = {f"networks.{k}": v for k, v in self.networks.state_dict().items()}
        state |= {f"metric.{k}": v for k, v in self._metric.state_dict().items()}
        state |= {f"adam.{k}": v for k, v in self._optimiser.state().items()}
        state["step"] = torch.tensor(self.next_step)
        return {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a `state_dict` into a learner built with the same arguments. Raises ValueError where it does not fit."""

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(name): state[key] for key in state if key.startswith(name)}

        try:
            self.networks.load_state_dict(part("networks."))
            self._metric.load_state_dict(part("metric."))
            self._optimiser.load_state(part("adam."))
            self.next_step = int(state["step"])
        except (LookupError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"progress of another stage: {error}; start the task again from its parent"
            ) from error

    def finish(
        self,
        batches: Iterable[Batch],
        class_names: list[str],
        n_images: int = 0,
        new_buffer: NewBuffer = InMemoryBuffer,
    ) -> StageOutcome:
        """Pass once over this rank's share of the task's images, on every rank, and end the stage.

        Drops the old model and the peer. `n_images`: of all ranks, which limits the composites per image.
        `new_buffer` makes the buffers for embeddings of a share that is too large for memory. Raises ValueError where
        names and labels disagree, StageDiverged for embeddings that are not finite.
        """
        if len(class_names) != self._n_classes or len(set(class_names)) != self._n_classes:
            raise ValueError(f"{len(set(class_names))} different class names, expected {self._n_classes}")
        s, n, is_base = self.settings, self._n_classes, self.is_base
        student = self._averaged_student().eval().requires_grad_(False)
        finish = FinishPass(s, self.bank, n, student.out_dim, self.world, new_buffer, is_base=is_base)
        each = 0 if is_base else s.map_composites
        with torch.inference_mode():
            for pixels, labels, numbers in batches:
                images, labels_n = as_images(pixels, self.world.device), torch.as_tensor(labels).long()
                indices = np.asarray(numbers)
                finish.add(self.old(images), student(images), labels_n, indices)
                for mixed, row_n in last_pass_composites(images, indices, each, n_images):
                    finish.add_composites(self.old(mixed), student(mixed), labels_n[row_n])
        student.cpu()
        student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # in which it is stored
        outcome = finish.outcome(student, self.version_id, class_names)
        outcome = replace(outcome, layer_lD=self._trained_layer())
        self.total_steps = self.next_step
        self.networks.peer = None
        del self.old, self._parallel, self._optimiser
        return outcome

    def _trained_layer(self) -> NDArray[np.float64] | None:
        """Return W [d, D] of a first stage's layer. That of a later one, which begins anew, has seen little."""
        is_first_trunk = self.is_base and self.old.spec.head == "discriminant"
        return training_layer(self.networks.student) if is_first_trunk else None

    def _averaged_student(self) -> Embedder:
        """Return the student with `old_share` of the old weights averaged in (never in the base stage), and without
        the head that is for training only."""
        student = self.networks.student
        if self.old.spec.head == "discriminant":
            student = trunk_of(student, self.old.spec).to(self.world.device)
        if self.settings.old_share and not self.is_base:
            with torch.no_grad():
                for new, old in zip(student.parameters(), self.old.parameters(), strict=True):
                    new.lerp_(old, self.settings.old_share)
        return student
