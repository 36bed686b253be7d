"""A gallery in exact form follows its head, measured through a snapshot: time, and memory beside the searcher.

    python -m benchmarks.follow
    python -m benchmarks.follow --items 1000000

Writes a root of made-up features of D = 1280, learns a head of half of the classes and then one of all of them, and
lets a snapshot with a cache of features on the local disk follow; in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.common import Report, common_arguments
from benchmarks.made_root import GIB, SHARD, D, land, made_features, new_root, watched
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.lift import Lift
from stream_odml.search.feature_cache import FeatureCache
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.artifacts import HEAD, STUDENT, SUMS
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums, sums_now, task_rows
from stream_odml.store.versions import SUMS_SEQ
from stream_odml.store.writer import Writer

CLASSES = 250
LIFT, SETTINGS = Lift(D), HeadSettings()


def make_root(root: str, items: int, seed: int) -> Writer:
    """Land so many items; every second shard is of the other half of the classes."""
    writer = new_root(root, LIFT)
    for number, at in enumerate(range(0, items, SHARD)):
        features, names = made_features(min(SHARD, items - at), CLASSES, seed + number)
        land(writer, f"shard-{number:04d}", features, [f"{number % 2} {name}" for name in names])
    return writer


def learn(writer: Writer, task: str, half: int) -> None:
    """Commit a head that knows one more half of the classes."""
    shards = [s.shard_id for s in writer.ledger.indexed.values() if int(s.shard_id[-4:]) % 2 == half]
    writer.close_task(task, shards, "benchmark")
    version, parent, store = writer.begin_attempt(task), writer.tree.head, writer.store
    sums = sums_now(store, parent).plus(task_rows(store, parent, shards).sums(LIFT))
    data = {HEAD: solve_head(sums, SETTINGS).to_bytes(), SUMS: sums.to_bytes()}
    refs = {name: writer.put_artifact(version, name, part) for name, part in data.items()}
    refs[STUDENT] = store.tree.get(parent).artifacts[STUDENT]
    writer.commit_stage(version, parent, task, refs, metrics={SUMS_SEQ: store.ledger.seq})


def follow(root: str, cache: str, link: Connection) -> None:
    """What a replica does: load, and reproject when a head comes; the old vectors stay until the new ones are whole."""
    store = Store.open(root)
    load_s, _, snapshot = watched(lambda: GallerySnapshot.load(store, cache=FeatureCache(cache)))
    link.send({"load_s": load_s, "searcher_gib": sum(snapshot.memory().values()) / GIB})
    link.recv()
    store.refresh()
    seconds, extra, now = watched(lambda: snapshot.refreshed(store))
    held = now.memory()
    link.send(
        {
            "reproject_s": seconds,
            "peak_beside_both_gib": extra - held["vectors"] / GIB,
            "new_vectors_gib": held["vectors"] / GIB,
            "cache_bytes_an_item": sum(f.stat().st_size for f in Path(cache).rglob("*") if f.is_file())
            / len(now),
        }
    )


def main() -> None:
    """Measure and write `follow.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    common_arguments(parser)
    arguments = parser.parse_args()
    report = Report.begin("follow", arguments)
    items = 4_000 if report.quick else arguments.items
    with tempfile.TemporaryDirectory() as folder:
        root = f"{folder}/root"
        writer = make_root(root, items, arguments.seeds[0])
        report.say(f"{items} items landed")
        learn(writer, "task-0001", 0)
        report.say("the first half is learnt")
        ours, theirs = multiprocessing.Pipe()
        reader = multiprocessing.get_context("spawn").Process(
            target=follow, args=(root, f"{folder}/cache", theirs)
        )
        reader.start()
        found: dict[str, float] = ours.recv()
        start = time.perf_counter()
        learn(writer, "task-0002", 1)
        found["fast_stage_s"] = time.perf_counter() - start
        ours.send("go on")
        found |= ours.recv()
        reader.join(timeout=60)
        writer.forget("class", writer.store.head_of(writer.tree.head).names[0])
        start = time.perf_counter()
        forget_in_sums(writer)
        found["erasure_s"] = time.perf_counter() - start
        writer.release()
    report.row(items=items, dim=D, load=os.getloadavg()[0], **found)
    for name, value in found.items():
        report.figure(name, value)
    report.write()


if __name__ == "__main__":
    main()
