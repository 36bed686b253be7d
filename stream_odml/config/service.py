"""Settings of the search service. Imports neither Ray nor torch, so that a configuration is read quickly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic.json_schema import SkipJsonSchema

from stream_odml.config.section import Section
from stream_odml.storage.reading import is_remote
from stream_odml.storage.regular import checked_path, machine_path

DEFAULT_MAX_PIXELS = 64_000_000
"""The default of `ingest.max_pixels`, the one limit of a stream; it is handed to everything that decodes."""
LARGEST_MAX_PIXELS = 178_000_000
"""What `ingest.max_pixels` may be at most."""


Port = Annotated[int, Field(ge=0, le=65_535)]


class ServiceOptions(Section):
    """Limits and sizes of the search service; every default suits one small machine."""

    host: str = "127.0.0.1"
    """Address the HTTP proxy listens on; 0.0.0.0 for every interface."""
    port: int = Field(8000, ge=0, le=65535)
    """Port of the HTTP proxy; 0 picks a free one."""
    replicas: int = Field(1, ge=1, le=256)
    """Serve replicas; two or more survive the loss of one."""
    num_cpus: float = Field(0.2, ge=0, le=64)
    """CPUs reserved per replica."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels that replicas must run on, to keep them apart from training."""
    max_ongoing_requests: int = Field(64, ge=1, le=10_000)
    """Maximum concurrent requests per replica; more are answered 503 with Retry-After."""
    max_arriving: int = Field(1024, ge=1, le=100_000)
    """Maximum requests per replica whose bodies still arrive; beyond it, the client with most loses its oldest."""
    max_connections_per_peer: int = Field(8192, ge=1, le=100_000)
    """Maximum connections per client address to the proxy of a local stream."""
    header_timeout_s: int = Field(5, ge=1, le=600)
    """Seconds a client has to send headers, and 16 KB of its body, to the proxy of a local stream."""
    poll_s: float = Field(0.25, ge=0.02, le=60)
    """Seconds between two polls of the store."""
    timeout_s: float = Field(10.0, gt=0, le=600)
    """Seconds until a request is cancelled."""
    body_timeout_s: float = Field(10.0, gt=0, le=600)
    """Seconds a client has to send its body."""
    wait_s: float = Field(5.0, ge=0, le=60)
    """Maximum seconds to wait for the version that min_version or min_seq asks for."""
    max_body_bytes: int = Field(32 << 20, ge=1024, le=1 << 30)
    """Maximum bytes per request body."""
    max_pixels: SkipJsonSchema[int] = Field(DEFAULT_MAX_PIXELS, ge=1024)
    """Largest width x height of an uploaded image: `ingest.max_pixels`, which a stream's configuration copies here."""
    max_request_pixels: int = Field(200_000_000, ge=1024)
    """Maximum pixels, width x height by the headers, of all images of a request."""
    max_held_bytes: int = Field(256 << 20, ge=1024)
    """Maximum bytes of all request bodies that a replica holds at once."""
    max_k: int = Field(200, ge=1, le=10_000)
    """Maximum k (neighbours asked for) per query."""
    max_batch: int = Field(256, ge=1, le=65_536)
    """Maximum queries per batch, and images per push."""
    image_threads: int = Field(1, ge=1, le=64)
    """Threads that decode and embed image queries."""
    search: Literal["auto", "exact", "fp16", "ivf", "hnsw"] = "auto"
    """Index of the gallery; auto is exact, and ivf above approximate_above items."""
    approximate_above: int = Field(300_000, ge=1)
    """Items above which auto searches approximately."""
    recall_target: float = Field(0.95, gt=0, le=1)
    """Minimum share of the exact 10 nearest that an approximate search finds."""
    search_threads: int = Field(1, ge=1, le=256)
    """FAISS threads of a replica; more than one only on cores of its own."""
    token_file: Path | None = None
    """File with the bearer token that clients must send; no token if absent."""
    token_env: str = "STREAM_ODML_TOKEN"
    """Environment variable with the token, used where no token_file is named."""
    read_token_file: Path | None = None
    """File with a second bearer token, which may search and read and change nothing."""
    read_token_env: str = "STREAM_ODML_READ_TOKEN"
    """Environment variable with the token for reading, used where no read_token_file is named."""
    allowed_hosts: tuple[str, ...] | None = None
    """Names of the service that clients may use, also as *.domain; `*` allows all. By default loopback names, the bound
    address and the machine's own names."""
    push_dir: str | None = None
    """Inbox folder for images pushed over HTTP; by default push/ under the stream root."""
    features_dir: Path | None = None
    """Folder, on each node, where replicas keep the trunk features of the gallery, shared by those of the node and
    found again by one that starts again. By default in files without a name, which end with the replica."""
    metrics_host: str = "127.0.0.1"
    """Address the metrics exporter of each replica listens on."""
    metrics_ports: tuple[Port, Port] = (9410, 9473)
    """First and last port tried for a replica's exporter; then any free one."""
    metrics_dir: Path | None = None
    """Folder of Prometheus file_sd files, one a replica; by default metrics/ under the root."""
    health_check_period_s: float = Field(2.0, gt=0, le=60)
    """Seconds between two health checks."""
    health_check_timeout_s: float = Field(5.0, gt=0, le=60)
    """Seconds before a health check fails."""
    stale_after_s: float = Field(60.0, gt=0, le=86_400)
    """Seconds without a successful poll of the store before readiness fails."""
    map_points: int = Field(1500, ge=10, le=20_000)
    """Points of the embedding map on the page."""
    namespace: str = Field("stream_odml", min_length=1)
    """Ray namespace of the StreamDriver actor."""

    @field_validator("metrics_ports")
    @classmethod
    def _ports_in_order(cls, ports: tuple[int, int]) -> tuple[int, int]:
        if ports[0] > ports[1]:
            raise ValueError("the first port is above the last one; write them in order")
        return ports

    @field_validator("push_dir")
    @classmethod
    def _folder_is_written_out(cls, push_dir: str | None) -> str | None:
        if not push_dir:
            return push_dir
        check = checked_path if is_remote(push_dir) else machine_path
        return check("folder of pushed images", push_dir)

    def token(self) -> str | None:
        """Return the token that clients must send, or None. Raises ValueError where its file is unreadable or empty."""
        return _token("token_file", self.token_file, self.token_env)

    def tokens(self) -> tuple[str | None, str | None]:
        """Return the token for everything and the one for reading; with the second alone, nothing can be changed.

        Raises ValueError where a file is unreadable or empty, and where both tokens are the same.
        """
        token = self.token()
        read_token = _token("read_token_file", self.read_token_file, self.read_token_env)
        if token is not None and token == read_token:
            raise ValueError(
                "service.read_token_file holds the same token as service.token_file; choose another"
            )
        return token, read_token


def _token(option: str, file: Path | None, variable: str) -> str | None:
    if file is None:
        return _sendable(os.environ.get(variable, "").strip(), f"the variable {variable}") or None
    try:
        token = file.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError as error:
        raise ValueError(
            f"service.{option} {str(file)!r} cannot be read ({error.strerror}); "
            "create it with one line, the token, or remove the option"
        ) from error
    if not token:
        raise ValueError(f"service.{option} {str(file)!r} is empty; write the token into it")
    return _sendable(token, f"service.{option} {str(file)!r}")


def _sendable(token: str, place: str) -> str:
    if token.isascii() and token.isprintable():
        return token
    raise ValueError(
        f"{place} holds several lines or characters outside ASCII, which no client can send as a token; "
        "write one line of printable ASCII"
    )
