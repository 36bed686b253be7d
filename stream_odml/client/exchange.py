"""One call and its outcome: how long to wait before trying again, what an answer or a failure means, and whether it is
of the one stream that a client talks to."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
import numpy as np

from stream_odml.client.calls import Call

T = TypeVar("T")
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading an answer raises that is of another service, or of none."""
_AGAIN = frozenset({429, 502, 503, 504})
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0


class ClientError(Exception):
    """Whatever keeps a call from its answer."""


class ServiceError(ClientError):
    """The service refused: `status` (HTTP), `error` (a stable code), `detail` and `remedy`."""

    def __init__(self, status: int, error: str, detail: str, remedy: str) -> None:
        super().__init__(f"{status} {error}: {detail}" + (f"; {remedy}" if remedy else ""))
        self.status, self.error, self.detail, self.remedy = status, error, detail, remedy


class ServiceUnreachable(ClientError):
    """No answer came: nothing listens there, the connection broke, or it took too long."""


def address(url: str) -> str:
    """Return the address of a service. Raises ValueError for what is none."""
    try:
        seen = httpx.URL(url)
        if seen.scheme in ("http", "https") and seen.host and not seen.query:
            return url
    except httpx.InvalidURL:
        pass
    raise ValueError(f"{url.rpartition('@')[2]!r} is no address of a service; write http://HOST:PORT")


def headers(token: str | None) -> dict[str, str]:
    """Return the headers of every request. Raises ValueError for a token that no header can carry."""
    token = (token or "").strip()
    return {"Authorization": f"Bearer {in_header(token, 'the token')}"} if token else {}


def in_header(value: str, name: str) -> str:
    """Return a value as a header can carry it: printable ASCII. The error does not repeat it: it may be a secret."""
    if value.isascii() and value.isprintable():
        return value
    raise ValueError(
        f"{name} holds line breaks or characters outside ASCII; send printable ASCII on one line"
    )


def request(
    client: httpx.Client | httpx.AsyncClient, call: Call[T], more_headers: Mapping[str, str]
) -> httpx.Request:
    """Return the request that makes `call`. Raises ValueError or TypeError for values that JSON has no form for."""
    sent = {name: in_header(value, name) for name, value in {**call.headers, **more_headers}.items()}
    try:
        body = None
        if call.json is not None:
            body = json.dumps(call.json, ensure_ascii=False, allow_nan=False, default=_plain).encode()
            sent["Content-Type"] = "application/json"
        return client.build_request(
            call.method, call.path, content=body, params=dict(call.params) or None, headers=sent
        )
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{error.object[:80]!a} holds a lone surrogate, which is no text; correct it"
        ) from None


def _plain(value: Any) -> Any:
    """Return a number of numpy as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(
        f"{type(value).__name__} {value!r:.80} cannot be sent; give text, numbers, lists and dicts"
    )


def wait_s(
    call: Call[T], outcome: httpx.Response | httpx.RequestError, attempt: int, retries: int
) -> float | None:
    """Return seconds until the next attempt, or None for none. Jittered, so that clients do not retry all at once."""
    if attempt >= retries or not call.repeatable:
        return None
    backoff = random.uniform(0.5, 1.0) * min(_LONGEST_WAIT_S, _FIRST_WAIT_S * float(2**attempt))
    if isinstance(outcome, httpx.RequestError):
        return backoff
    if outcome.status_code not in _AGAIN:
        return None
    after = outcome.headers.get("retry-after", "")
    return max(backoff, min(_LONGEST_WAIT_S, float(after))) if after.isdecimal() else backoff


def result(call: Call[T], outcome: httpx.Response | httpx.RequestError) -> T:
    """Return the parsed answer of `call`. Raises ServiceError or ServiceUnreachable."""
    if isinstance(outcome, httpx.RequestError):
        reason = str(outcome) or type(outcome).__name__
        raise ServiceUnreachable(
            f"no answer to {call.method} {call.path} ({reason}); is the service up?"
        ) from outcome
    if outcome.is_success:
        try:
            return call.read(outcome.json() if call.is_json else outcome.content)
        except _UNREADABLE as error:
            detail = f"the answer to {call.method} {call.path} is none that this client knows"
            remedy = "check the address, and that service and client are of one release"
            raise ServiceError(outcome.status_code, "unexpected_answer", detail, remedy) from error
    try:
        body = outcome.json()
        said = [body[name] for name in ("error", "detail", "remedy")]
        if all(isinstance(text, str) for text in said):
            raise ServiceError(outcome.status_code, *said)
    except _UNREADABLE:
        pass
    # A proxy in between answered in its own words.
    detail = outcome.text[:200] or outcome.reason_phrase
    raise ServiceError(outcome.status_code, "unexpected_answer", detail, "check the address")


STREAM_HEADER = "X-Stream-Id"
"""In a request: the stream that it is meant for. In an answer: the stream that gives it."""


class WrongStream(ServiceError):
    """Another stream answers at the address of the service: nothing of this call may be believed."""


class StreamPin:
    """Names the expected stream in every request, and checks every answer. Safe to share between threads."""

    def __init__(self, stream: str | None) -> None:
        self._expected = stream
        self._lock = threading.Lock()

    def headers(self) -> dict[str, str]:
        """Return the header by which a service refuses requests that are meant for another stream."""
        return {STREAM_HEADER: self._expected} if self._expected else {}

    def check(self, outcome: httpx.Response | httpx.RequestError) -> None:
        """Raise WrongStream unless the answer comes from the expected stream; the first answer decides which it is.

        A failure without a name may come from a proxy in between, and is raised as what it is.
        """
        if isinstance(outcome, httpx.RequestError):
            return
        named = outcome.headers.get(STREAM_HEADER)
        with self._lock:
            if self._expected is None:
                self._expected = named
                return
        if named == self._expected or (named is None and not outcome.is_success):
            return
        named_so = "a service that names no stream" if named is None else f"stream {named}"
        place = f"{outcome.url.scheme}://{outcome.url.netloc.decode()}"  # a password is no part of an error
        raise WrongStream(
            outcome.status_code,
            "wrong_stream",
            f"{named_so} answers at {place}, expected {self._expected}",
            "correct the address of the service; a new client talks to whichever stream it finds",
        )
