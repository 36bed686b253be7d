"""What the same stream gets without moving the gallery: never learning after the first task, and plain fine-tuning.

Protects: the comparison is fair. Same first version, same tasks in the same order, same training images, steps, rates
and seed, and the same held-out images in the same gallery as the figures of the stream itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.reasons import BadShard, TransientReadError
from stream_odml.ingest.rows import Decoded, decode_shard
from stream_odml.ingest.sampler import PKSampler
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import Embedder, embed, embedder_from_bytes, with_training_head
from stream_odml.learn.settings import method_settings
from stream_odml.learn.stage import StageLearner
from stream_odml.pipeline.evaluating import by_cosine, by_head, mean_found
from stream_odml.pipeline.held_out import embed_images
from stream_odml.pipeline.held_out_rows import choose, keys_of
from stream_odml.pipeline.holdout import is_held_out
from stream_odml.pipeline.messages import shard_ref
from stream_odml.pipeline.sources import read_options
from stream_odml.pipeline.stage_learner import parent_bank
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.store import Store
from stream_odml.store.version_metrics import VersionMetrics

Key = tuple[str, str]
Tell = Callable[[str], None]
BATCH = 256
NO_TASK = ("slow", "renew")
"""Kinds of stages that learn no new task: nobody else would have trained for them."""
TRIAL = 32
"""Images that threads are tried on."""


@dataclass(frozen=True)
class Baseline:
    """Recall@1 on all classes up to one version; None where it could not be measured."""

    frozen: float | None
    """The first learnt version, with its head, embeds everything, for ever."""
    finetuned: float | None
    """Fine-tuned on each task as it comes; items stay where the model that learnt them put them."""
    images: int
    """Held-out images that it rests on."""


def measure_baselines(
    store: Store, config: StreamConfig, tell: Tell = lambda line: None
) -> dict[str, Baseline]:
    """Return the baselines for every learnt version up to the head, by its id. Repeats the learning: takes about as
    long as a third of it. `tell` hears of its progress."""
    versions = store.tree.lineage(store.tree.head)[1:]
    if not versions:
        return {}
    first = embedder_from_bytes(store.artifact(versions[0], STUDENT))
    with _faster_threads(first):
        return _measured(store, config, versions, first, tell)


@contextlib.contextmanager
def _faster_threads(model: Embedder) -> Iterator[None]:
    """Use all of torch's threads, or one: on a busy machine threads wait for one another at every operation, and a
    step that takes a tenth of a second alone takes seconds."""
    before, took = torch.get_num_threads(), {}
    batch = np.zeros((TRIAL, model.spec.image_size, model.spec.image_size, 3), np.uint8)
    try:
        for threads in (before, 1):
            torch.set_num_threads(threads)
            embed(model, batch)  # the first call also makes what later ones only use
            began = time.perf_counter()
            embed(model, batch)
            took[threads] = time.perf_counter() - began
        torch.set_num_threads(min(took, key=lambda threads: took[threads]))
        yield
    finally:
        torch.set_num_threads(before)


def _measured(
    store: Store, config: StreamConfig, versions: list[str], first: Embedder, tell: Tell
) -> dict[str, Baseline]:
    tuned: _FineTuned | None = _FineTuned(config, first, parent_bank(store, versions[0], first.out_dim))
    as_first = by_head(store.head_of(versions[0])) if config.solves_head else by_cosine
    gallery: dict[Key, NDArray[np.float32]] = {}
    found: dict[str, Baseline] = {}
    for before, version_id in zip(["", *versions], versions, strict=False):
        version = store.tree.get(version_id)
        if VersionMetrics.read(version.metrics).kind in NO_TASK:
            found[version_id] = found[before]
            continue
        task, parent = version.task or "", version.parent or ""
        # Under a solved head the first version has none that could be trained on: one is trained on its task, too.
        if tuned is not None and (before or config.solves_head):
            tuned = tuned if tuned.learn(store, task, version_id, tell) else None
        rows = choose(store, parent, [task], config.evaluation, config.seed)
        keys, classes = keys_of(rows), rows["class_name"].to_pylist()
        models = [first] if tuned is None else [first, tuned.model]
        size, max_pixels = config.model.image_size, config.ingest.max_pixels
        there, vectors = embed_images(store, keys, models, size, max_pixels, "cpu")
        kept = [key for key, is_there in zip(keys, there, strict=True) if is_there]
        kept_classes = [name for name, is_there in zip(classes, there, strict=True) if is_there]
        frozen, finetuned = mean_found(as_first(kept_classes, vectors[0], vectors[0])), None
        if tuned is not None:
            for key, vector in zip(kept, vectors[1], strict=True):
                gallery.setdefault(key, vector)  # it stays where the model that learnt its task put it
            stored = np.array([gallery[key] for key in kept]).reshape(vectors[1].shape)
            finetuned = mean_found(by_cosine(kept_classes, vectors[1], stored))
        found[version_id] = Baseline(frozen, finetuned, len(kept))
    return found


class _FineTuned:
    """The model of somebody who trains on what is new and leaves the gallery alone."""

    def __init__(self, config: StreamConfig, first: Embedder, bank: ClassBank) -> None:
        self._config, self._settings = config, method_settings("finetune", config.learning)
        self.model, self._bank = first, bank
        if config.solves_head:
            # It trains a head, too: a linear one, from the first task on, by as many steps as in every later stage.
            self.model = with_training_head(first, config.seed)
            self._bank = ClassBank.empty(self.model.out_dim)
            self._settings = replace(
                self._settings,
                base_steps=self._settings.stage_steps,
                base_learning_rate=self._settings.learning_rate,
            )

    def learn(self, store: Store, task: str, version_id: str, tell: Tell) -> bool:
        """Learn one stage. Return False where the task's images are no longer available."""
        try:
            images = list(_training_images(store, self._config, task))
        except (BadShard, TransientReadError, OSError):
            return False
        names, labels = np.unique(np.array([name for name, _ in images], np.str_), return_inverse=True)
        pixels = np.stack([image for _, image in images])
        s, seed = self._settings, self._config.seed
        learner = StageLearner(
            s, self.model, self._bank, n_classes=len(names), version_id=version_id, seed=seed
        )
        sampler = PKSampler(labels, s.classes_per_batch, s.images_per_class, seed, 1)
        while learner.next_step < learner.total_steps:
            chosen = sampler.slice(learner.next_step, 0)
            learner.step(torch.from_numpy(pixels[chosen]), torch.from_numpy(labels[chosen]))
            tell(f"what fine-tuning would get: {task}, step {learner.next_step} of {learner.total_steps}")
        batches = (np.arange(at, min(at + BATCH, len(labels))) for at in range(0, len(labels), BATCH))
        outcome = learner.finish(
            ((pixels[b], labels[b], b) for b in batches), [str(n) for n in names], len(labels)
        )
        self.model, self._bank = outcome.student, outcome.bank
        return True


def _training_images(
    store: Store, config: StreamConfig, task: str
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    size, max_pixels = config.model.image_size, config.ingest.max_pixels
    for shard_id in store.ledger.tasks[task].shard_ids:
        ref = shard_ref(store.ledger.shards[shard_id])
        for found in decode_shard(ref, size, max_pixels, read_options(config, ref.uri), ("image",)):
            if isinstance(found, Decoded) and not is_held_out(found.item.item_id, config.evaluation.held_out):
                yield found.item.class_name, found.pixels
