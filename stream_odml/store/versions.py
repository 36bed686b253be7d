"""The tree of committed model versions and the moves of its head, replayed from the `versions` rows.

Protects: an id is in the tree if and only if its one row was committed; rolling back moves the head
and removes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from stream_odml.store.artifacts import BACKWARD, FORWARD, HEAD, STUDENT, ArtifactRef, refs_from_json
from stream_odml.store.errors import AmbiguousVersion, NoVersionYet, UnknownVersion
from stream_odml.store.row_values import identifier, parsed, reading, whole
from stream_odml.wording import some

Row = Mapping[str, Any]
MAX_CANDIDATES = 8
"""Versions that an error names."""
KEPT_HEADS = 50
"""Of so many latest versions the head stays readable when retention drops their model: vectors that a client keeps are
read by it. A head has some 10 MB."""
FORGOT = "forgot"
"""Reason `forgot:<seq>` of artifacts that took the place of ones with forgotten images in them."""
SUMS_SEQ = "sums_seq"
"""Key of a version's metrics: up to which `seq` its class sums leave out what was replaced or forgotten."""


@dataclass(frozen=True)
class Version:
    """One committed model version."""

    version_id: str
    parent: str | None
    task: str | None
    artifacts: Mapping[str, ArtifactRef]
    metrics: Mapping[str, Any]
    """As committed, overlaid with every later evaluation."""
    seq: int
    time: datetime
    epoch: int
    depth: int
    retired: bool = False
    """Its model is dropped by retention; its drift maps, and so its vectors, stay, and for a while its head."""
    forgotten_seq: int = -1
    """Its bank, or its sums and head, are without what tombstones up to this `seq` of the ledger cover."""

    @property
    def sums_seq(self) -> int:
        """Its sums are of what was neither replaced nor forgotten by this `seq` of the ledger; -1 where none says."""
        return max(int(self.metrics.get(SUMS_SEQ, -1)), self.forgotten_seq)

    @property
    def txn(self) -> str:
        """What its gallery rows carry: a writer that was fenced cannot slip rows under its successor's commit."""
        return stage_txn(self.version_id, self.epoch)


@dataclass(frozen=True)
class HeadMove:
    """The head went to `version_id` (publish, rollback, roll-forward)."""

    version_id: str
    reason: str
    seq: int
    time: datetime


@dataclass(frozen=True)
class Refusal:
    """An attempt whose result was not wanted; its version id never enters the tree."""

    version_id: str
    parent: str | None
    task: str | None
    reason: str
    metrics: Mapping[str, Any]
    seq: int
    time: datetime


@dataclass(frozen=True)
class VersionTree:
    """An immutable picture of the versions up to `seq`; `replay` makes the next one from new rows only."""

    seq: int = -1
    epoch: int = 0
    versions: Mapping[str, Version] = field(default_factory=lambda: MappingProxyType({}))
    """By id, in commit order."""
    moves: tuple[HeadMove, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @staticmethod
    def replay(rows: Iterable[Row], after: "VersionTree | None" = None) -> "VersionTree":
        """Return the tree after `rows` (any order; rows up to `after.seq` are ignored). Pure."""
        start = after or VersionTree()
        new = sorted((row for row in rows if row["seq"] > start.seq), key=lambda row: int(row["seq"]))
        if not new:
            return start
        versions, epoch = dict(start.versions), start.epoch
        moves, refusals = list(start.moves), list(start.refusals)
        for row in new:
            kind, version_id = row["kind"], row["version_id"]
            with reading("versions", row):
                if kind == "version":
                    versions.setdefault(version_id, _version(row, versions))
                elif kind == "head":
                    moves.append(HeadMove(version_id, row["reason"] or "", row["seq"], row["time"]))
                elif kind == "refusal":
                    refusals.append(_refusal(row))
                elif kind == "epoch":
                    epoch = max(epoch, int(row["epoch"]))
                elif version_id in versions:
                    versions[version_id] = _amended(versions[version_id], row)
        return VersionTree(
            int(new[-1]["seq"]), epoch, MappingProxyType(versions), tuple(moves), tuple(refusals)
        )

    @property
    def head(self) -> str:
        """The served version's id. Raises NoVersionYet before the root is committed."""
        if not self.moves:
            raise NoVersionYet("the stream root has no model version yet; commit the initial model first")
        return self.moves[-1].version_id

    @property
    def root(self) -> str | None:
        """The initial model's id, if it is committed."""
        return next((v.version_id for v in self.versions.values() if v.parent is None), None)

    @property
    def files(self) -> frozenset[str]:
        """Paths of the artifacts that some version needs: all of a version's, and a retired one's drift maps. Several
        versions may need one file."""
        return frozenset(
            ref.path
            for version in self.versions.values()
            for name, ref in version.artifacts.items()
            if not version.retired
            or name in (FORWARD, BACKWARD)
            or (name == HEAD and self.keeps_head(version.version_id))
        )

    @property
    def heads_without_models(self) -> frozenset[ArtifactRef]:
        """Heads of retired versions that can be read still."""
        kept = (v for name, v in self.versions.items() if v.retired and self.keeps_head(name))
        return frozenset(v.artifacts[HEAD] for v in kept)

    def keeps_head(self, version_id: str) -> bool:
        """Return whether a version's head can be read. That of a version without its model can, for a while
        (KEPT_HEADS), and until something that it may have been solved of is erased: it cannot be solved again."""
        version = self.get(version_id)
        if not version.retired or HEAD not in version.artifacts:
            return not version.retired
        erased = max(other.forgotten_seq for other in self.versions.values())
        return version.sums_seq >= erased and version_id in list(self.versions)[-KEPT_HEADS:]

    def kept_with(self, artifact: str) -> list[Version]:
        """Return versions that can be served again, of those that have this artifact."""
        return [v for v in self.versions.values() if artifact in v.artifacts and not v.retired]

    def get(self, version_id: str) -> Version:
        """Raise UnknownVersion for an id that was never committed."""
        try:
            return self.versions[version_id]
        except KeyError:
            raise UnknownVersion(
                f"version {version_id!r} is not in this store; vectors must name one of its versions, "
                f"the latest are {list(self.versions)[-3:]}"
            ) from None

    def named(self, name: str) -> str:
        """Return the version that is `name` or alone begins with it; `head` stands for the served one. Raises
        AmbiguousVersion, which names the candidates, or UnknownVersion."""
        if name in self.versions:
            return name
        if name == "head" and self.moves:
            return self.head
        found = [version for version in self.versions if version.startswith(name)] if name else []
        if len(found) == 1:
            return found[0]
        if found:
            raise AmbiguousVersion(
                f"{len(found)} versions begin with {name!r}: {some(found, MAX_CANDIDATES)}; write more of it"
            )
        raise UnknownVersion(
            f"no version is {name[:80]!r} or begins with it; the latest are {', '.join(list(self.versions)[-3:])}"
        )

    def same_trunk(self, a: str, b: str) -> bool:
        """Return whether two versions embed by one student: what one made is in the other's space as it is."""
        return a == b or self.get(a).artifacts.get(STUDENT, a) == self.get(b).artifacts.get(STUDENT, b)

    def lineage(self, version_id: str) -> list[str]:
        """Return ids from the root to `version_id`, both included."""
        line: list[str] = []
        at: str | None = self.get(version_id).version_id
        while at is not None:
            line.append(at)
            at = self.versions[at].parent
        return line[::-1]

    def path(self, start: str, end: str) -> list[str]:
        """Return ids from `start` up to the common ancestor and down to `end`, all included."""
        up, down = self.lineage(start), self.lineage(end)
        shared = sum(1 for a, b in zip(up, down, strict=False) if a == b)
        return up[shared - 1 :][::-1] + down[shared:]

    def learnt(self, version_id: str | None = None) -> frozenset[str]:
        """Return tasks learnt by the versions from the root to `version_id` (the head when none is given)."""
        if version_id is None and not self.moves:
            return frozenset()
        tasks = (self.versions[v].task for v in self.lineage(version_id or self.head))
        return frozenset(task for task in tasks if task)


def version_entry(kind: str, version_id: str, **columns: str) -> Row:
    """Return a row of `versions` about this version."""
    return {"kind": kind, "version_id": version_id, **columns}


def stage_txn(version_id: str, epoch: int) -> str:
    """Return the transaction name of a stage's gallery rows."""
    return f"{version_id}.{epoch}"


def _version(row: Row, versions: Mapping[str, Version]) -> Version:
    parent = row["parent"] or None
    if parent is None and versions and row["version_id"] not in versions:
        raise ValueError("it has no parent, which only the first version has")
    return Version(
        version_id=identifier(row["version_id"], "the version"),
        parent=parent,
        task=row["task"] or None,
        artifacts=MappingProxyType(refs_from_json(row["artifacts"])),
        metrics=MappingProxyType(_metrics(row)),
        seq=row["seq"],
        time=row["time"],
        epoch=row["epoch"],
        depth=0 if parent is None else versions[parent].depth + 1,
    )


def _metrics(row: Row) -> dict[str, Any]:
    metrics = parsed(row["metrics"])
    return metrics | ({SUMS_SEQ: whole(metrics[SUMS_SEQ], SUMS_SEQ, -1)} if SUMS_SEQ in metrics else {})


def _refusal(row: Row) -> Refusal:
    of = row["version_id"], row["parent"] or None, row["task"] or None
    return Refusal(*of, row["reason"] or "", _metrics(row), row["seq"], row["time"])


def _amended(version: Version, row: Row) -> Version:
    if row["kind"] == "evaluation":
        return replace(version, metrics=MappingProxyType({**version.metrics, **_metrics(row)}))
    if row["kind"] == "artifact":
        artifacts = MappingProxyType({**version.artifacts, **refs_from_json(row["artifacts"])})
        kind, _, seq = (row["reason"] or "").partition(":")
        forgotten = int(seq) if kind == FORGOT and seq.isdigit() else version.forgotten_seq
        return replace(version, artifacts=artifacts, forgotten_seq=forgotten)
    if row["kind"] == "retired":
        return replace(version, retired=True)
    return version
