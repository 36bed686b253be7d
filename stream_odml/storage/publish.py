"""The one way bytes become visible in an inbox: whole, durable, and never over something else.

Locally: written aside under a dot name in the same folder, fsynced, hard-linked to its name (which fails
if the name is taken), folder fsynced. On an object store: spooled to a temporary file, its name claimed for
its content, then one upload, visible when it ends.

A claim is a small object `.claims/<name>` beside the shards that holds the sha256 of what lands under that name. It
is made by one conditional put (`If-None-Match: *`), which a store answers to one writer only: of two producers with
other content, however they race, one is refused before it writes a byte of its own. Who claims a name for the content
that was claimed goes on, so that a producer that was killed may repeat itself.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import obstore
import pyarrow.fs as pafs
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from stream_odml.storage.atomic import write_whole
from stream_odml.storage.reading import (
    RETRY_ATTEMPTS,
    StorageOptions,
    check_bucket,
    is_remote,
    join,
    local_path,
    s3_filesystem,
    s3_path,
    s3_settings,
)
from stream_odml.storage.refusals import store_words

CLAIMS = ".claims"
MAX_NAME_CHARS = 150
Write = Callable[[IO[bytes]], object]


class ShardExists(ValueError):
    """The name is taken by other bytes. A shard is immutable: land under another name."""


def taken(place: object) -> ShardExists:
    """Return the error for a place where other bytes lie."""
    return ShardExists(f"{place} exists with other content; a shard is immutable: choose another name")


def check_name(name: str) -> str:
    """Return a name that sources see and every file system takes. Raises ValueError."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}}", name):
        raise ValueError(
            f"shard name {name!r:.80}: expected 1-{MAX_NAME_CHARS} letters, digits, '.', '_', '-', "
            "first a letter or digit"
        )
    return name


def publish(
    inbox: str | os.PathLike[str], name: str, write: Write, options: StorageOptions | None = None
) -> str:
    """Let `write` fill a file and show it as `name`. Returns its URI. Raises ShardExists, ValueError, OSError."""
    inbox = os.fspath(inbox)
    check_name(name)
    if is_remote(inbox):
        check_bucket(inbox)
        return _publish_remote(inbox, name, write, options)
    folder = local_path(inbox)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / name, write, show=_show)
    return str(folder / name)


def exists(inbox: str | os.PathLike[str], name: str) -> bool:
    """Return whether something lies in the inbox under this name."""
    inbox = os.fspath(inbox)
    if not is_remote(inbox):
        return os.path.lexists(local_path(inbox) / name)
    check_bucket(inbox)
    found = s3_filesystem(None).get_file_info(join(s3_path(inbox), name))
    return bool(found.type != pafs.FileType.NotFound)


def _show(aside: Path, final: Path) -> None:
    try:
        os.link(aside, final)
    except OSError as error:
        if not isinstance(error, FileExistsError) and not final.exists():
            os.rename(aside, final)  # a file system without hard links
        elif file_sha256(aside) != file_sha256(final):
            raise taken(final) from None


def _publish_remote(inbox: str, name: str, write: Write, options: StorageOptions | None) -> str:
    filesystem, key = s3_filesystem(options), join(s3_path(inbox), name)
    with tempfile.TemporaryFile() as spool:
        write(spool)
        size = spool.tell()
        spool.seek(0)
        sha256 = hashlib.file_digest(spool, "sha256").hexdigest()
        if not claim_name(inbox, name, sha256, key, options):
            spool.seek(0)
            with filesystem.open_output_stream(key) as out:
                shutil.copyfileobj(spool, out, max(1, min(size, 8 << 20)))
    return join(inbox, name)


def claim_name(inbox: str, name: str, sha256: str, key: str, options: StorageOptions | None) -> bool:
    """Claim a name in an object store for content of this hash, which the object `key` is to have. Returns whether that
    object is there already. Raises ShardExists where the name is another content's, OSError."""
    filesystem = s3_filesystem(options)
    # First what lies there, claimed or not: other tools copy files into an inbox too.
    if filesystem.get_file_info(key).type == pafs.FileType.File:
        with filesystem.open_input_stream(key) as there:
            if hashlib.file_digest(there, "sha256").hexdigest() != sha256:
                raise taken(join(inbox, name))
        return True
    claim(inbox, name, sha256, options)
    return False


def claim(inbox: str, name: str, sha256: str, options: StorageOptions | None) -> None:
    """Claim a shard's name below `s3://...` for content of this hash. Raises ShardExists, OSError."""
    bucket, _, prefix = s3_path(inbox).partition("/")
    key = f"{prefix}/{CLAIMS}/{name}" if prefix else f"{CLAIMS}/{name}"
    try:
        store = _store(bucket, options)
        try:
            obstore.put(store, key, sha256.encode(), mode="create")
        except AlreadyExistsError:
            if bytes(obstore.get(store, key).bytes()) != sha256.encode():
                raise taken(join(inbox, name)) from None
    except (BaseError, OSError) as error:
        raise OSError(f"{inbox} cannot be written now: {store_words(error)}") from error


def file_sha256(path: Path) -> str:
    """Return sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _store(bucket: str, options: StorageOptions | None) -> S3Store:
    known = s3_settings(options)
    own = known.key, known.secret, known.token
    key, secret, token = _shared_credentials() if known.key is None else own
    more: dict[str, Any] = {"endpoint": known.endpoint}
    if key is not None and secret is not None:
        more |= {"access_key_id": key, "secret_access_key": secret, "session_token": token}
    allow_http = known.endpoint is not None and known.endpoint.startswith("http://")
    return S3Store(
        bucket,
        region=known.region,
        client_options={"allow_http": allow_http, "timeout": "30s"},
        retry_config={"max_retries": RETRY_ATTEMPTS, "retry_timeout": timedelta(seconds=60)},
        **{name: value for name, value in more.items() if value is not None},
    )


def _shared_credentials() -> Sequence[str | None]:
    """Return those of AWS's shared file: this client reads the environment and the instance's role, but no file."""
    place = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials"
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(place)
    profile = os.environ.get("AWS_PROFILE", "default")
    found = parser[profile] if parser.has_section(profile) else {}
    return [found.get(f"aws_{name}") for name in ("access_key_id", "secret_access_key", "session_token")]
