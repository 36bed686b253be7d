"""Whether every process of a stream finds a node: CPUs, GPUs and labels, before any of them is asked for.

Protects: a stream never waits without a word for a node that the cluster does not have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stream_odml.config.stream import ConfigError, StreamConfig

_AMONG = re.compile(r"(!?)in\((.*)\)")


class ClusterTooSmall(ValueError):
    """The cluster cannot hold every process of the stream at once; waiting would never end."""


@dataclass
class Node:
    """A node of the cluster with what it has in all."""

    name: str
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Role:
    """`count` processes that each need so many CPUs and GPUs of one node whose labels match `selector`."""

    name: str
    setting: str
    """The key under which a person changes its labels."""
    count: int
    cpus: float
    gpus: float = 0.0
    selector: Mapping[str, str] = field(default_factory=dict)

    def each(self, unit: str) -> float:
        """Return the CPUs or GPUs of one process."""
        return self.gpus if unit == "GPU" else self.cpus


def total(roles: Sequence[Role], unit: str = "CPU") -> float:
    """Return the CPUs or GPUs of all processes together."""
    return sum(role.count * role.each(unit) for role in roles)


def check_resources(roles: Sequence[Role], available: float, unit: str = "CPU") -> None:
    """Raise ClusterTooSmall if all `roles` together exceed `available` logical units. Ray itself would wait without a
    word (ray-project/ray#44687): a Train worker group with every CPU leaves none for the read tasks that it needs."""
    wanted = total(roles, unit)
    if wanted <= available + 1e-6:
        return
    asked = [role for role in roles if role.count * role.each(unit)]
    rows = "\n".join(f"  {role.name:<18} {role.count} x {role.each(unit):g} {unit}" for role in asked)
    raise ClusterTooSmall(
        f"the stream needs {wanted:g} {unit} at the same time, but the cluster has {available:g}:\n{rows}\n"
        "Lower `cluster.workers` or the fractions under `cluster`, or start Ray with more."
    )


def check_placement(roles: Sequence[Role], nodes: Sequence[Node]) -> None:
    """Raise ClusterTooSmall naming the first role that finds no node, what it asks of one, and what there is. The most
    demanding are placed first, each on the first node with room: what Ray may do as well."""
    free = [Node(n.name, n.cpus, n.gpus, n.labels) for n in nodes]
    for role in sorted(roles, key=lambda r: (-bool(r.selector), -r.gpus, -r.cpus)):
        for placed in range(role.count):
            target = next((node for node in free if _fits(role, node)), None)
            if target is None:
                raise ClusterTooSmall(_says(role, placed, nodes, free))
            target.cpus -= role.cpus
            target.gpus -= role.gpus


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Return whether a node's labels satisfy Ray's label selector: `v`, `!v`, `in(a,b)` or `!in(a,b)` for each key."""
    return all(_satisfies(labels.get(key), wanted) for key, wanted in selector.items())


def _satisfies(value: str | None, wanted: str) -> bool:
    among = _AMONG.fullmatch(wanted)
    if among is not None:
        listed = value in {item.strip() for item in among[2].split(",")}
        return listed != bool(among[1])
    return value != wanted[1:] if wanted.startswith("!") else value == wanted


def _fits(role: Role, node: Node) -> bool:
    room = node.cpus >= role.cpus - 1e-6 and node.gpus >= role.gpus - 1e-6
    return room and matches(node.labels, role.selector)


def _says(role: Role, placed: int, nodes: Sequence[Node], free: Sequence[Node]) -> str:
    asks = f"{role.cpus:g} CPU" + (f" and {role.gpus:g} GPU" if role.gpus else "")
    where = ", ".join(f"{k}={v}" for k, v in role.selector.items())
    labelled = f" labelled {where}" if where else ""
    found = f"{role.name}: {placed} of {role.count} find a node; each asks for {asks} on one node{labelled}"
    if where and not any(matches(node.labels, role.selector) for node in nodes):
        return (
            f"{found}, and no node has that label. Start one with `ray start --labels {where}`, "
            f"or change `{role.setting}`. The cluster has:\n{_table(nodes, free)}"
        )
    return (
        f"{found}. Lower what it asks for, start larger nodes, or change `{role.setting}`. "
        f"The cluster has (free of all, after what was placed before):\n{_table(nodes, free)}"
    )


def _table(nodes: Sequence[Node], free: Sequence[Node]) -> str:
    rows = []
    for node, left in zip(nodes, free, strict=True):
        named = ", ".join(f"{k}={v}" for k, v in node.labels.items() if not k.startswith("ray.io/"))
        labels = f"  [{named}]" if named else ""
        gpus = f", {left.gpus:g} of {node.gpus:g} GPU" if node.gpus else ""
        rows.append(f"  {node.name:<16} {left.cpus:g} of {node.cpus:g} CPU{gpus}{labels}")
    return "\n".join(rows)


def cluster_nodes() -> list[Node]:
    """Return the nodes that are alive in the cluster of this process."""
    import ray

    return [
        Node(
            str(node["NodeManagerAddress"]),
            float(node["Resources"].get("CPU", 0.0)),
            float(node["Resources"].get("GPU", 0.0)),
            dict(node.get("Labels", {})),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def check_batch(config: StreamConfig) -> None:
    """Raise ConfigError unless a batch divides over every number of workers that may train."""
    if config.model.takes_vectors:
        return
    least = config.cluster.min_workers or config.cluster.workers
    for workers in range(least, config.cluster.workers + 1):
        if config.learning.classes_per_batch % workers:
            raise ConfigError(
                f"learning.classes_per_batch {config.learning.classes_per_batch} does not divide over {workers} "
                "workers; make it a multiple of every size from cluster.min_workers to cluster.workers"
            )


def joins_cluster(config: StreamConfig) -> bool:
    """Return whether the stream joins a running Ray cluster, and starts none of its own."""
    return config.cluster.address is not None or bool(os.environ.get("RAY_ADDRESS"))


def roles(config: StreamConfig, workers: int | None = None) -> list[Role]:
    """Return what runs at the same time, with `workers` of training, by default all: one read task at least must fit
    beside the rest."""
    c, s, trains = config.cluster, config.service, not config.model.takes_vectors
    return [
        Role("training", "cluster.worker_labels", (workers or c.workers) if trains else 0, c.cpus_per_worker,
             c.gpus_per_worker, c.worker_labels),
        Role("indexers", "cluster.indexer_labels", c.indexers, c.cpus_per_indexer, c.gpus_per_indexer,
             c.indexer_labels),
        Role("serving", "service.labels", s.replicas if c.serve else 0, s.num_cpus, 0.0, s.labels),
        Role("reading", "cluster.cpus_per_read", int(trains), c.cpus_per_read),
    ]  # fmt: skip
