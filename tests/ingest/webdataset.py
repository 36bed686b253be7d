"""Tars as WebDataset users write them, landed."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from stream_odml.ingest.new_items import NewItem, checked
from stream_odml.storage.publish import check_name, publish
from stream_odml.storage.reading import StorageOptions


def land_tar(
    inbox: str | Path, name: str, items: Iterable[NewItem], options: StorageOptions | None = None
) -> str:
    """Land items as one WebDataset tar `<name>.tar` (`00000000.jpg` and `00000000.json`). Returns its URI."""

    def write(file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for row, item in enumerate(checked(items)):
                note: dict[str, Any] = {"class_name": item.class_name, "attributes": dict(item.attributes)}
                note |= {"item_id": item.item_id} if item.item_id is not None else {}
                note |= {"time": item.time.isoformat()} if item.time is not None else {}
                _add(tar, f"{row:08d}.{_extension(item.image)}", item.image)
                _add(tar, f"{row:08d}.json", json.dumps(note, sort_keys=True).encode())

    return publish(inbox, check_name(f"{name}.tar"), write, options)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _extension(image: bytes) -> str:
    starts = {b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}
    return starts.get(image[:4], "bmp" if image[:2] == b"BM" else "jpg")
