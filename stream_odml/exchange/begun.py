"""What a new root keeps of the upgrade that fills it: from where, by which map, to which model.

Protects: an upgrade that is repeated, after whatever ended it and however the old root went on, maps from the same
trunk to the same model by the same map; and what the old root erased meanwhile is erased in the new one too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from stream_odml.config.stream import StreamConfig
from stream_odml.exchange.errors import ExchangeError
from stream_odml.learn.cross_map import CrossMap
from stream_odml.storage.files import SMALL_FILE, Files
from stream_odml.store.erasure import forget_in_banks
from stream_odml.store.layout import UPGRADE
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums
from stream_odml.store.writer import Writer

MAP = f"{UPGRADE}/map.safetensors"
"""The map by which items were taken over; written last."""
ABOUT = f"{UPGRADE}/begun.json"


@dataclass(frozen=True)
class Begun:
    """An upgrade that has begun. A map that is fitted again, from other pairs or on another machine, would be another
    one: the one that is kept goes on."""

    stream: str
    version: str
    """Of the old root, from whose trunk the map leads."""
    model: str
    """Digest of the weights that it leads to."""
    seq: int
    """Row of the old root's ledger up to which erasures are taken over."""
    map_bytes: bytes

    @staticmethod
    def read(files: Files) -> Begun | None:
        """Return what a root says; None where none has begun. Raises ExchangeError for what cannot be read."""
        if not files.exists(MAP):
            return None
        try:
            about = json.loads(files.read(ABOUT, SMALL_FILE))
            stream, version, model = (str(about[name]) for name in ("stream", "version", "model"))
            return Begun(stream, version, model, int(about["seq"]), files.read(MAP))
        except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
            raise ExchangeError(
                f"{files.uri} holds an upgrade that another release began, or {ABOUT} is damaged ({error}); name a "
                "new root, or remove that one"
            ) from None

    def write(self, files: Files) -> None:
        """Note it in a root."""
        about = {"stream": self.stream, "version": self.version, "model": self.model, "seq": self.seq}
        files.write(ABOUT, json.dumps(about).encode())
        files.write(MAP, self.map_bytes)

    @property
    def cross_map(self) -> CrossMap:
        """The map."""
        return CrossMap.from_bytes(self.map_bytes)

    def check(self, old: Store, model: str | None, root: str) -> None:
        """Raise ExchangeError unless `root` can go on from this old root, to this model where it is known."""
        remedy = "name a new root, or remove that one"
        if old.stream_id != self.stream:
            raise ExchangeError(f"{root} was begun by an upgrade of another stream than {old.uri}; {remedy}")
        if model is not None and model != self.model:
            raise ExchangeError(f"{root} was begun by an upgrade to another model; {remedy}")
        kept = old.tree.versions.get(self.version)
        if kept is None or kept.retired:
            raise ExchangeError(
                f"{root} was begun from version {self.version}, which {old.uri} has not kept (store.keep_versions): "
                f"what came since cannot be mapped as the rest was; {remedy}"
            )


def erase_since(seq: int, old: Store, config: StreamConfig) -> None:
    """Forget in the new root what the old one forgot after row `seq` of its ledger."""
    later = [tombstone for tombstone in old.ledger.tombstones if tombstone.seq > seq]
    if not later:
        return
    writer = Writer.claim(
        config.root, "upgrade", lease_s=config.store.lease_s, storage_options=config.storage_options
    )
    try:
        for one in later:
            known = [own for own in writer.ledger.tombstones if (own.kind, own.name) == (one.kind, one.name)]
            if any(own.time >= one.time for own in known):
                continue  # by an attempt that was killed before it could say so
            writer.forget(one.kind, one.name, one.items)
        forget_in_banks(writer)
        forget_in_sums(writer)
    finally:
        writer.release()
