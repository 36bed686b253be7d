"""One call and its outcome: how long to wait before trying again, and what an answer or a failure means."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TypeVar

import httpx

from stream_odml.client.calls import Call

T = TypeVar("T")
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


def headers(token: str | None) -> dict[str, str]:
    """Return the headers of every request."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def request(
    client: httpx.Client | httpx.AsyncClient, call: Call[T], more_headers: Mapping[str, str]
) -> httpx.Request:
    """Return the request that makes `call`."""
    sent = {**call.headers, **more_headers}
    return client.build_request(
        call.method, call.path, json=call.json, params=dict(call.params) or None, headers=sent
    )


def wait_s(
    call: Call[T], outcome: httpx.Response | httpx.TransportError, attempt: int, retries: int
) -> float | None:
    """Return seconds until the next attempt, or None for none. Jittered, so that clients do not retry all at once."""
    if attempt >= retries or not call.repeatable:
        return None
    backoff = random.uniform(0.5, 1.0) * min(_LONGEST_WAIT_S, _FIRST_WAIT_S * float(2**attempt))
    if isinstance(outcome, httpx.TransportError):
        return backoff
    if outcome.status_code not in _AGAIN:
        return None
    after = outcome.headers.get("retry-after", "")
    return max(backoff, min(_LONGEST_WAIT_S, float(after))) if after.isdecimal() else backoff


def result(call: Call[T], outcome: httpx.Response | httpx.TransportError) -> T:
    """Return the parsed answer of `call`. Raises ServiceError or ServiceUnreachable."""
    if isinstance(outcome, httpx.TransportError):
        reason = str(outcome) or type(outcome).__name__
        raise ServiceUnreachable(
            f"no answer to {call.method} {call.path} ({reason}); is the service up?"
        ) from outcome
    if outcome.is_success:
        return call.read(outcome.json() if call.is_json else outcome.content)
    try:
        body = outcome.json()
        raise ServiceError(outcome.status_code, body["error"], body["detail"], body["remedy"])
    except (ValueError, KeyError, TypeError):  # a proxy in between answered in its own words
        detail = outcome.text[:200] or outcome.reason_phrase
        raise ServiceError(outcome.status_code, "unexpected_answer", detail, "check the address") from None
