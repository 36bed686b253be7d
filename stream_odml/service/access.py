"""Who may ask for what, by host name, origin and token; and what a request must be: meant for this stream, with an
address in UTF-8 and headers that say one thing.

Protects: closed by default. What a request is allowed is decided on the path that the router sees, and all but a short
list of addresses needs a token once there is one. A page of another site can neither change anything nor, by a name
that it lets point here, read anything. Several streams on one machine never take each other's pushes, whatever a port
or a proxy leads to. No request is taken for another one: servers and frameworks replace bytes that are no text by
U+FFFD, which a name may have, and of a header that comes twice they take the first here and the last there.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from starlette._utils import get_route_path
from starlette.types import Scope

from stream_odml.config.service import ServiceOptions
from stream_odml.service.errors import ApiError, bad_request, unavailable

# Probes, the page, which a browser must have before it can ask for a token, and the description of the API.
_OPEN = re.compile(r"/|/healthz|/readyz|/docs|/openapi\.json|/page/[\w.-]+")
_SAFE = ("GET", "HEAD", "OPTIONS")
_SEARCHES = ("/v1/search", "/v1/search/batch", "/v1/embed")
_EVERY_ADDRESS = ("0.0.0.0", "::", "")
_IN_BRACKETS = re.compile(r"\[([0-9a-f:.]+)\](?::[0-9]*)?")
"""An IPv6 address as a URL has it. No name stands in brackets."""
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_PORT = re.compile(r"[0-9]*")
Headers = Iterable[tuple[bytes, bytes]]


class Access:
    """Decides by host name, by origin and by token whether a request may go on."""

    def __init__(self, options: ServiceOptions) -> None:
        """Raise ValueError if a token file cannot be read or both tokens are the same."""
        self._token, self._read_token = options.tokens()
        self._bound = options.host
        self._hosts = _named_hosts(options)
        self._suffixes = (".localhost", *(name[1:] for name in self._hosts if name.startswith("*.")))

    def check(self, scope: Scope) -> None:
        """Raise ApiError 421 for a host that is not served, 403 for a foreign page, 401 or 403 for a token."""
        headers, method = list(scope["headers"]), str(scope.get("method", "GET"))
        self._check_host(headers)
        if method not in _SAFE:
            _check_origin(headers)
        self._check_token(headers, method, get_route_path(scope))

    def _check_host(self, headers: Headers) -> None:
        given = _values(headers, b"host")
        if "*" in self._hosts or not given:  # a browser, which is what this guards, always names the host
            return
        if len(given) > 1 or not self._is_served(_without_port(given[0])):
            raise ApiError(
                421,
                "unknown_host",
                f"the request is for host {given[0][:80]!a}, which this service does not answer to",
                "use its address, or add the name to service.allowed_hosts",
            )

    def _is_served(self, host: str) -> bool:
        if host in self._hosts:
            return True
        is_name = _NAME.fullmatch(host) is not None
        if is_name and any(host.endswith(suffix) for suffix in self._suffixes):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        # No site can make an address point elsewhere, so all of ours are good where we listen on all.
        mapped = getattr(address, "ipv4_mapped", None) or address
        return mapped.is_loopback or self._bound in _EVERY_ADDRESS

    def _check_token(self, headers: Headers, method: str, path: str) -> None:
        if self._token is None and self._read_token is None:
            return
        if method in ("GET", "HEAD") and _OPEN.fullmatch(path):
            return
        given = _bearer(headers)
        if _same(given, self._token):
            return
        reads = method in _SAFE or path in _SEARCHES
        if _same(given, self._read_token):
            if reads:
                return
            raise ApiError(
                403,
                "read_only",
                "the token that came with the request is for reading",
                "send the other token",
            )
        raise ApiError(
            401,
            "unauthorized",
            "no valid token came with the request",
            "send the header 'Authorization: Bearer TOKEN'",
            {"WWW-Authenticate": "Bearer"},
        )


def _check_origin(headers: Headers) -> None:
    """Refuse a request from a page of another origin that would change something; clients without an origin may ask."""
    sites, origins = _values(headers, b"sec-fetch-site"), _values(headers, b"origin")
    hosts = [_without_default_port(host) for host in _values(headers, b"host")]
    if all(site in ("same-origin", "none") for site in sites) and all(
        origin.startswith(("http://", "https://"))
        and _without_default_port(origin.partition("://")[2]) in hosts
        for origin in origins
    ):
        return
    raise ApiError(
        403,
        "foreign_origin",
        f"the request comes from a page of another site ({(origins or sites)[0][:80]!a})",
        "use the service's own page; a proxy in front must pass the Host header on",
    )


def _named_hosts(options: ServiceOptions) -> frozenset[str]:
    if options.allowed_hosts is not None:
        return frozenset(name.lower() for name in options.allowed_hosts) | {"localhost"}
    machine = socket.gethostname().lower()
    short = machine.partition(".")[0]
    return frozenset({"localhost", options.host.lower(), machine, short, f"{short}.local"})


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for key, value in headers if key.lower() == name]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return match[1] if (match := _IN_BRACKETS.fullmatch(host)) else host
    name, _, port = host.rpartition(":")
    return (name if name and _PORT.fullmatch(port) else host).removesuffix(".")


def _without_default_port(host: str) -> str:
    return host.removesuffix(":80").removesuffix(":443")


def _bearer(headers: Headers) -> bytes:
    given = [value for key, value in headers if key.lower() == b"authorization"]
    scheme, _, token = given[0].strip().partition(b" ") if len(given) == 1 else (b"", b"", b"")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _same(given: bytes, expected: str | None) -> bool:
    return expected is not None and hmac.compare_digest(given, expected.encode())


STREAM_HEADER = "X-Stream-Id"
"""In an answer: the stream that gives it. In a request: the stream that it is meant for."""
_KEY = STREAM_HEADER.lower().encode()
_ONCE = (b"content-type", b"content-encoding", b"idempotency-key")


def check_request(scope: Scope) -> None:
    """Raise ApiError 400 for an address that is no UTF-8 text, and for a header twice of which one counts."""
    _check_text("path", scope.get("raw_path") or b"")
    _check_text("query string", scope["query_string"])
    names = [name for name, _ in scope["headers"]]
    for name in _ONCE:
        if names.count(name) > 1:
            raise bad_request(f"the header {name.decode()} comes twice", "send it once")


def _check_text(part: str, written: bytes) -> None:
    if not written.isascii():
        raise bad_request(f"the {part} of the address holds bytes that are not ASCII", "percent-encode it")
    if b"%" not in written:
        return
    try:
        unquote_to_bytes(written).decode()
    except UnicodeDecodeError:
        raise bad_request(
            f"the {part} of the address is not UTF-8 text", "percent-encode the bytes of its UTF-8 form"
        ) from None


def check_stream(headers: Iterable[tuple[bytes, bytes]], own: str | None) -> None:
    """Raise ApiError for a request that names another stream than `own`: 421, or 503 before that is known."""
    asked = {value.decode("latin-1").strip() for name, value in headers if name == _KEY}
    if not asked - {own}:
        return
    if own is None:
        raise unavailable("not_ready", "the stream is not read yet")
    raise ApiError(
        421,
        "wrong_stream",
        f"the request is meant for another stream than {own}, which answers here",
        f"correct the address of the service, or the header {STREAM_HEADER}",
    )
