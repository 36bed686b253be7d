"""Where bytes lie: a local path or a bucket of an object store, and the one S3 client of shards and progress."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

StorageOptions = Mapping[str, str]
"""As deltalake takes them: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL.
"""

RETRY_ATTEMPTS = 6


NOT_IN_A_PREFIX = "?#%"
"""Characters that end a URL's path or stand for others: by them the Delta library reads and writes another prefix."""


def check_bucket(uri: str) -> None:
    """Raise ValueError for a place in a store of another kind, one that names no bucket, or has a part that is no name:
    its clients disagree about what `a/../b`, `a/./b` and `a//b` are."""
    # A folder that is reached by the client of object stores has its name behind three slashes.
    if scheme_of(uri) not in ("s3", "file"):
        raise ValueError(f"no storage for {uri!r}: expected a local path, file:// or s3://")
    bucket, *parts = uri.removeprefix("file:///").rpartition("://")[2].rstrip("/").split("/")
    if not bucket:
        raise ValueError(f"{uri} names no bucket; write s3://BUCKET/PREFIX")
    if wrong := [part for part in parts if part in ("", ".", "..")]:
        raise ValueError(
            f"{uri!r} has the part {wrong[0]!r} between two slashes; write s3://BUCKET/PREFIX without it"
        )


def check_prefix(uri: str) -> None:
    """Raise ValueError for a place in an object store that cannot hold a stream root. Errors as of `check_bucket`."""
    check_bucket(uri)
    wrong = sorted({c for c in uri if c in NOT_IN_A_PREFIX or not c.isprintable()})
    if wrong or uri.rstrip("/") != uri.rstrip("/ "):
        seen = " ".join(map(ascii, wrong)) or "' ' at the end"
        raise ValueError(
            f"the stream root {uri!r} has {seen} in its name, which Delta tables cannot take; rename it"
        )


def scheme_of(place: str) -> str:
    """Return what a place says before `://`; nothing for a local path."""
    scheme, found, _ = place.partition("://")
    return scheme if found else ""


def is_remote(uri: str) -> bool:
    """Return whether the place is an object store."""
    return scheme_of(uri) == "s3"


def local_path(uri: str | os.PathLike[str]) -> Path:
    """Return the path of a local place. Raises ValueError for a scheme that is not known."""
    text = os.fspath(uri).removeprefix("file://")
    if scheme_of(text):
        raise ValueError(f"no storage for {text!r}: expected a local path, file:// or s3://")
    return Path(text)


def join(uri: str, path: str) -> str:
    """Return a place below another one."""
    return f"{uri.rstrip('/')}/{path}"


@dataclass(frozen=True)
class S3Settings:
    """Where an object store is and who asks; None is what its client finds by itself."""

    key: str | None
    secret: str | None
    token: str | None
    region: str
    endpoint: str | None


def s3_settings(options: StorageOptions | None) -> S3Settings:
    """Return the options, and the environment where they say nothing."""
    known = {**os.environ, **(options or {})}
    endpoint = known.get("AWS_ENDPOINT_URL") or None
    return S3Settings(
        key=known.get("AWS_ACCESS_KEY_ID"),
        secret=known.get("AWS_SECRET_ACCESS_KEY"),
        token=known.get("AWS_SESSION_TOKEN"),
        region=known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION") or "us-east-1",
        endpoint=endpoint if endpoint is None or "://" in endpoint else f"https://{endpoint}",
    )


def table_options(uri: str, options: StorageOptions | None) -> dict[str, str] | None:
    """Return the options of a place for the clients of Delta and Lance: they end the process for an endpoint without a
    scheme, and refuse one of `http://`, as of MinIO, unless they are told that it is meant."""
    given = dict(options or {})
    endpoint = s3_settings(options).endpoint if is_remote(uri) else None
    if endpoint is not None:
        given["AWS_ENDPOINT_URL"] = endpoint
        if endpoint.startswith("http://"):
            given.setdefault("AWS_ALLOW_HTTP", "true")
    return given or None


def s3_filesystem(options: StorageOptions | None) -> Any:
    """Return an S3 file system that retries and backs off when throttled (AWS standard strategy)."""
    known = s3_settings(options)
    scheme, _, host = (known.endpoint or "https://").partition("://")
    return pafs.S3FileSystem(
        access_key=known.key,
        secret_key=known.secret,
        session_token=known.token,
        region=known.region,
        endpoint_override=host or None,
        scheme=scheme,
        connect_timeout=5,
        request_timeout=30,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=RETRY_ATTEMPTS),
        # Small files go up as one PUT; without this each is a multipart upload of three requests.
        allow_delayed_open=True,
    )


def filesystem_of(uri: str, options: StorageOptions | None) -> tuple[Any, str]:
    """Return the file system that a place is in, and the path of the place there."""
    if is_remote(uri):
        return s3_filesystem(options), s3_path(uri)
    return pafs.LocalFileSystem(), str(local_path(uri))


def s3_path(uri: str) -> str:
    """Return bucket/key of an s3:// place."""
    return uri.removeprefix("s3://").rstrip("/")
