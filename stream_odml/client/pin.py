"""The one stream that a client talks to: named to it, or the first that answered it."""

from __future__ import annotations

import threading

import httpx

from stream_odml.client.exchange import ServiceError

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
