"""Who may write a name in an object store: whoever claims it first, and for the content that was claimed only.

Protects: of two producers with other content, however they race, one is refused before it writes a byte of its own.
A claim is a small object `.claims/<name>` beside the shards that holds the sha256 of what lands under that name. It
is made by one conditional put (`If-None-Match: *`), which a store answers to one writer only. Who claims a name for
the content that was claimed goes on, so that a producer that was killed may repeat itself.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from stream_odml.storage.reading import RETRY_ATTEMPTS, StorageOptions, s3_path, s3_settings
from stream_odml.wording import first_line

CLAIMS = ".claims"


class NameClaimed(ValueError):
    """The name is another content's."""


def claim(inbox: str, name: str, sha256: str, options: StorageOptions | None) -> None:
    """Claim a shard's name below `s3://...` for content of this hash. Raises NameClaimed, OSError."""
    bucket, _, prefix = s3_path(inbox).partition("/")
    key = f"{prefix}/{CLAIMS}/{name}" if prefix else f"{CLAIMS}/{name}"
    try:
        store = _store(bucket, options)
        try:
            obstore.put(store, key, sha256.encode(), mode="create")
        except AlreadyExistsError:
            if bytes(obstore.get(store, key).bytes()) != sha256.encode():
                raise NameClaimed(f"{name} in {inbox} is claimed for other content") from None
    except (BaseError, OSError) as error:
        raise OSError(f"{inbox} cannot be written now: {first_line(error)[:300]}") from error


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
    """Those of AWS's shared file: this client reads the environment and the instance's role, but no file."""
    place = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials"
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(place)
    profile = os.environ.get("AWS_PROFILE", "default")
    found = parser[profile] if parser.has_section(profile) else {}
    return [found.get(f"aws_{name}") for name in ("access_key_id", "secret_access_key", "session_token")]
