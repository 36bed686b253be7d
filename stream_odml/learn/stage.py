"""One stage: a student, its frozen parent and a fresh peer over the images of one task, and of no other.

Every step is a pure function of (state, batch, seed, step): a stage resumed from `state_dict` goes on to the
same bits on a CPU. No image of an earlier task and no model older than the parent is ever at hand.
"""

# b rows of this rank   B global batch   d embedding

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from stream_odml.learn.augment import augment, step_seed
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.embedder import Embedder, as_images
from stream_odml.learn.finish import Batch, FinishPass, run_finish
from stream_odml.learn.kept import InMemory, Room
from stream_odml.learn.metric_losses import build_metric_loss
from stream_odml.learn.networks import across_ranks, build_networks, contiguous, freeze
from stream_odml.learn.objective import stage_losses
from stream_odml.learn.optimiser import build_optimiser, load_optimiser_state, optimiser_state, set_rate
from stream_odml.learn.outcome import StageDiverged, StageOutcome, StepReport
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.views import LastPassViews, counts_of_views, views_of_batch
from stream_odml.learn.virtual import VirtualFeatures
from stream_odml.learn.world import World

__all__ = ["StageDiverged", "StageLearner", "StageOutcome", "StepReport"]
_AT_A_TIME = 24


class StageLearner:
    """Learns one task. `.step` total_steps times on every rank, then `.finish` once."""

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
    ) -> None:
        """`old`: the parent model, which is copied; `bank`: the parent's (empty: the base stage, L_M only).

        `n_classes`: labels are 0..n_classes-1 of this task. `version_id`: of the model to be made, the key of
        the classes born. `backward_maps`: only for virtual='affine', see VirtualFeatures. ValueError on what
        does not fit.
        """
        if bank.dim != old.spec.dim:
            raise ValueError(
                f"bank of dimension {bank.dim} with an embedder of {old.spec.dim}; they must be one version's"
            )
        if n_classes < 1:
            raise ValueError(f"n_classes: {n_classes}, expected at least 1")
        self.settings, self.bank, self.version_id, self.seed = settings, bank, version_id, seed
        self.world = world or World.current()
        self.is_base = len(bank) == 0
        self.total_steps = settings.base_steps if self.is_base else settings.stage_steps
        self.next_step = 0
        self._n_classes = n_classes
        self._rate = settings.base_learning_rate if self.is_base else settings.learning_rate
        self._build(old, {} if backward_maps is None else backward_maps)

    def _build(self, old: Embedder, backward_maps: Mapping[str, DriftMap]) -> None:
        s, device = self.settings, self.world.device
        self.old = freeze(old, device)
        self.networks = build_networks(old, s, base=self.is_base, seed=self.seed, world=self.world)
        names = ["student"] + (["peer"] if self.networks.peer is not None else [])
        losses = [build_metric_loss(s, self._n_classes, old.spec.dim, step_seed(self.seed, 2)) for _ in names]
        self._metric = nn.ModuleDict(dict(zip(names, losses, strict=True))).to(device)
        # The more old classes there are to each new one, the more there is to lose.
        crowd = (len(self.bank) / self._n_classes) ** 0.5
        self._weights = replace(s, weight_wide=s.weight_wide * crowd)
        repels = s.weight_repel > 0 and not self.is_base
        self._directions = torch.from_numpy(self.bank.directions).to(device) if repels else None
        self._virtual = None if self.is_base else VirtualFeatures(self.bank, s, backward_maps, device)
        self._asks_old = not self.is_base and bool(
            s.weight_old
            or s.weight_anchor
            or s.weight_wide
            or repels
            or (self._virtual is not None and len(self._virtual))
        )
        self._parallel = across_ranks(self.networks, self.world)
        self._optimiser = build_optimiser(self.networks, self._metric, s, self._rate)

    def step(self, pixels_bHW3: Tensor, labels_b: Tensor) -> StepReport:
        """One optimiser step on this rank's slice of the global batch (uint8 pixels, int64 labels).

        Raises StageDiverged, on every rank alike and before any weight is touched, when the loss is
        not finite.
        """
        step, world = self.next_step, self.world
        if step >= self.total_steps:
            raise ValueError(f"step {step} of a stage of {self.total_steps}; call finish")
        counts = world.counts(len(labels_b))
        start, total = sum(counts[: world.rank]), sum(counts)
        labels_B = world.gather(labels_b.to(world.device), counts)
        images = as_images(pixels_bHW3, world.device)
        images = augment(images, self.settings, self.seed, step, start=start, total=total)
        with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
            self._draw_anew(3, step, world.rank)  # for dropout inside a named backbone
            wide = self._wide(images, step, start=start, total=total)
            student_Bd, peer_Bd, old_Bd, wide_pair = self._embed(images, wide, step, counts)
            self._draw_anew(4, step)  # for miners that draw: the same on every rank
            losses = stage_losses(
                self._weights,
                self._metric,
                self._virtual,
                labels_B,
                student_Bd,
                peer_Bd,
                old_Bd,
                self._directions,
                wide_pair,
            )
            report = self._report(losses, step)
            self._descend(sum(losses.values(), torch.zeros((), device=world.device)), step)
        self.next_step = step + 1
        return report

    def _draw_anew(self, *parts: int) -> None:
        """As torch.manual_seed, which formats the stack for each kind of accelerator that is not there."""
        seed = step_seed(self.seed, *parts)
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _wide(self, images_b3SS: Tensor, step: int, *, start: int, total: int) -> Tensor:
        """This rank's wide views, none in the base stage."""
        s = self.settings
        if self.is_base or not s.weight_wide:
            return images_b3SS[:0]
        return views_of_batch(
            images_b3SS, s.wide_every, s.images_per_class, self.seed, step, start=start, total=total
        )

    def _embed(
        self, images: Tensor, wide: Tensor, step: int, counts: list[int]
    ) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, Tensor] | None]:
        """Raw g of the global batch under S, N and O, in one exchange; of its wide views under S and O, in another."""
        b = len(images)
        with_peer = self.networks.peer is not None and step % self.settings.peer_every == 0
        seen = (
            torch.cat([images, wide]).contiguous(memory_format=torch.channels_last) if len(wide) else images
        )
        student, peer_bd = self._parallel(seen, b if with_peer else 0)
        d = student.shape[1]
        # Cloned out of inference mode, so that the loss may save it for its backward pass.
        old = self._old_embeddings(seen).clone() if self._asks_old else None
        parts = [part[:b] for part in (student, peer_bd, old) if part is not None]
        gathered = list(torch.split(self.world.gather(torch.cat(parts, dim=1), counts), d, dim=1))
        old_Bd = gathered.pop() if old is not None else None
        wide_pair = None
        if old is not None and self.settings.weight_wide:
            of_ranks = counts_of_views(counts, self.settings.wide_every)
            both = self.world.gather(torch.cat([student[b:], old[b:]], dim=1), of_ranks)
            wide_pair = (both[:, :d], both[:, d:])
        return gathered[0], gathered[1] if peer_bd is not None else None, old_Bd, wide_pair

    def _old_embeddings(self, images: Tensor) -> Tensor:
        bf16 = self.settings.old_precision == "bf16"
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            # On a CPU a few at a time, so that the activations of a layer are still in the cache for the next.
            few = _AT_A_TIME if images.device.type == "cpu" else max(len(images), 1)
            return torch.cat([self.old(part) for part in torch.split(images, few)])

    def _report(self, losses: dict[str, Tensor], step: int) -> StepReport:
        values = torch.stack([loss.detach().double() for loss in losses.values()]).tolist()
        terms = dict(zip(losses, values, strict=True))
        if not all(abs(value) < float("inf") for value in values):
            raise StageDiverged(
                f"loss at step {step} is {terms}, expected finite numbers; lower learning_rate "
                f"(now {self._rate:g}), raise warmup_steps, or look at the task's images, then learn it again"
            )
        return StepReport({"total": sum(values), **terms}, step)

    def _descend(self, loss: Tensor, step: int) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        set_rate(self._optimiser, self.settings, self._rate, step, self.total_steps)
        self._optimiser.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Progress within the stage, enough with the constructor's arguments to go on to the same bits."""
        state = {f"networks.{k}": v for k, v in self.networks.state_dict().items()}
        state |= {f"metric.{k}": v for k, v in self._metric.state_dict().items()}
        state |= {f"adam.{k}": v for k, v in optimiser_state(self._optimiser).items()}
        state["step"] = torch.tensor(self.next_step)
        return {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`, into a learner built with the same arguments; ValueError when it
        does not fit."""
        parts: dict[str, dict[str, Tensor]] = {"networks": {}, "metric": {}, "adam": {}}
        try:
            for key, value in state.items():
                if key != "step":
                    part, rest = key.split(".", 1)
                    parts[part][rest] = value
            self.networks.load_state_dict(parts["networks"])
            self._metric.load_state_dict(parts["metric"])
            load_optimiser_state(self._optimiser, parts["adam"])
            self.next_step = int(state["step"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"progress of another stage: {error}; begin the task again from its parent"
            ) from error

    def finish(
        self, batches: Iterable[Batch], class_names: list[str], n_images: int = 0, room: Room = InMemory
    ) -> StageOutcome:
        """One pass over this rank's share of the task's images, each once, on every rank; then the
        stage is over. `n_images`: of all ranks, by which the map's wide views are rationed. `room` makes
        what holds the embeddings of a share that is too large for memory.

        Drops the old model and the peer. ValueError when names and labels disagree; StageDiverged for
        non-finite embeddings.
        """
        if len(class_names) != self._n_classes or len(set(class_names)) != self._n_classes:
            raise ValueError(f"{len(set(class_names))} different class names, expected {self._n_classes}")
        student = self._averaged_student().eval().requires_grad_(False)
        finish = FinishPass(self.settings, self.bank, self._n_classes, student.spec.dim, self.world, room)
        views = LastPassViews(0 if self.is_base else self.settings.map_views, n_images)
        run_finish(finish, batches, self.old, student, self.world.device, views)
        student.cpu()
        contiguous(student)
        outcome = finish.outcome(student, self.version_id, class_names)
        self.total_steps = self.next_step
        self.networks.peer = None
        del self.old, self._parallel, self._optimiser
        return outcome

    def _averaged_student(self) -> Embedder:
        """The student, with old_share of the old weights (never in the base stage)."""
        student = self.networks.student
        if self.settings.old_share and not self.is_base:
            with torch.no_grad():
                for new, old in zip(student.parameters(), self.old.parameters(), strict=True):
                    new.lerp_(old, self.settings.old_share)
        return student
