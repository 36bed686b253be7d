"""A Python process of this package for work that may end whoever does it, and the messages between it and its parent:
JSON and bytes, never pickle."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

ENDED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
READ, ROW, END = b"B", b"R", b"E"
"""Kinds of messages to the parent: bytes are wanted, a row, the end of the file."""
READ_BYTES = 8 << 20
MAX_JSON_BYTES = 8 << 20
_HEAD = struct.Struct("<cIq")
_SIZE = struct.Struct("<q")
_NONE = -1


class Message(NamedTuple):
    """A kind, its fields, and the bytes that came with them."""

    kind: bytes
    fields: dict[str, Any]
    data: bytes | None


class BadMessage(OSError):
    """The other end broke off, or says what no honest one says."""


class Pipe:
    """One end: what the other end writes, and what it reads."""

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        self._source, self._sink = source, sink

    def send(self, kind: bytes, fields: Mapping[str, Any], data: bytes | None = None) -> None:
        """Say something to the parent. Rows may wait for one another; what the parent is to answer may not."""
        text = json.dumps(fields).encode()
        self._sink.write(_HEAD.pack(kind, len(text), _NONE if data is None else len(data)))
        self._sink.write(text)
        if data is not None:
            self._sink.write(data)
        if kind != ROW:
            self._sink.flush()

    def receive(self, max_data_bytes: int) -> Message:
        """Return the next message of the child. Raises BadMessage."""
        kind, length, size = _HEAD.unpack(self._exactly(_HEAD.size))
        if length > MAX_JSON_BYTES or size > max_data_bytes:
            raise BadMessage(f"a message of {length} and {size} bytes")
        try:
            fields = json.loads(self._exactly(length))
        except ValueError as error:
            raise BadMessage(f"not JSON: {error}") from error
        return Message(kind, fields, None if size == _NONE else self._exactly(size))

    def send_json(self, fields: Mapping[str, Any]) -> None:
        """Give the child a job."""
        self.send_bytes(json.dumps(fields).encode())

    def receive_json(self) -> dict[str, Any] | None:
        """Return the next job, or None when there will be no more."""
        try:
            data = self.receive_bytes()
        except BadMessage:
            return None
        return None if data is None else dict(json.loads(data))

    def send_bytes(self, data: bytes | None) -> None:
        """Answer the child; None where the bytes cannot be had."""
        self._sink.write(_SIZE.pack(_NONE if data is None else len(data)))
        self._sink.write(data or b"")
        self._sink.flush()

    def receive_bytes(self) -> bytes | None:
        """Return what `send_bytes` sent. Raises BadMessage when the other end is gone."""
        (size,) = _SIZE.unpack(self._exactly(_SIZE.size))
        return None if size == _NONE else self._exactly(size)

    def _exactly(self, count: int) -> bytes:
        data = self._source.read(count)
        if len(data) != count:
            raise BadMessage("the other end broke off")
        return data


class AskedFile(io.RawIOBase):
    """A file whose bytes the parent has."""

    def __init__(self, pipe: Pipe, size_bytes: int) -> None:
        self._pipe, self.size_bytes, self._at = pipe, size_bytes, 0
        self.is_unreachable = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size_bytes}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, f"offset {base + offset} is before the start of the file")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), READ_BYTES, self.size_bytes - self._at))
        if not count:
            return 0
        self._pipe.send(READ, {"offset": self._at, "count": count})
        data = self._pipe.receive_bytes()
        if data is None:
            self.is_unreachable = True
            raise OSError("the parent cannot read the file now")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Return all of what is asked for, unless the file ends."""
        left = max(0, self.size_bytes - self._at)
        left = left if size < 0 else min(size, left)
        data = bytearray(left)
        view, filled = memoryview(data), 0
        while filled < left and (count := self.readinto(view[filled:])):
            filled += count
        return bytes(data[:filled])


def take_pipe() -> Pipe:
    """Return the two ends that the parent of this process holds, unreachable of whatever prints."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    return Pipe(source, sink)


def how_it_ended(code: int) -> str:
    """Return in words what the exit code of a process says, negative for a signal."""
    return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"


class Child:
    """A process that runs a module of this package, and the pipe to it."""

    def __init__(self, module: str, environment: Mapping[str, str], *, is_silent: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"stream_odml.ingest.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if is_silent else None,
            # It imports from where this process does.
            env={**environment, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._streams = (self._process.stdin, self._process.stdout)
        self.pipe = Pipe(self._process.stdout, self._process.stdin)
        self.pid, self.kill = self._process.pid, self._process.kill

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self, wait_s: float = 0.5) -> int:
        """End it, unless it has ended; its exit code, negative for a signal."""
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.close()
        try:
            return self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
