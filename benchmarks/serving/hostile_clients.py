"""Clients that ask for too much, each at an address of its own on the loopback; bounded in number and in time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import json
import multiprocessing
import resource
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

HALF_OPEN = 4200
ATTACKER, SAME = "127.0.0.2", "127.0.0.1"
"""The attacker's address, and the one of the client that is watched."""
Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Target:
    """A service: where it is, the dimension of its vectors, whose address asks."""

    url: str
    dim: int
    source: str = ATTACKER

    async def connect(self) -> Link:
        """A connection from `source`."""
        at = urlsplit(self.url)
        return await asyncio.open_connection(at.hostname, at.port, local_addr=(self.source, 0))


Attack = Callable[[Target], Awaitable[None]]


def request(path: str, body: bytes, method: str = "POST", **headers: str) -> bytes:
    """One HTTP request as bytes."""
    given = {"Host": "localhost", "Content-Type": "application/json", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def repeated(target: Target, requests: Iterable[bytes], connections: int) -> None:
    """Send `requests` in turn on `connections` connections, each as soon as the one before is answered, for ever."""
    bodies = list(requests)

    async def one(number: int) -> None:
        while True:
            writer = None
            try:
                reader, writer = await target.connect()
                while True:
                    number += 1
                    writer.write(bodies[number % len(bodies)])
                    await writer.drain()
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = next(
                        int(line.split(b":")[1])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length")
                    )
                    await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError, StopIteration, RuntimeError):
                await asyncio.sleep(0.02)
            finally:
                if writer is not None:
                    writer.close()

    await asyncio.gather(*(one(number) for number in range(connections)))


async def held(target: Target, opening: bytes, dribble: bytes, count: int = HALF_OPEN) -> None:
    """Keep `count` connections open that have sent `opening` and go on with `dribble` now and then, for ever."""

    async def one(number: int) -> None:
        await asyncio.sleep(number / count)
        while True:
            writer = None
            try:
                reader, writer = await target.connect()
                writer.write(opening)
                while not reader.at_eof():
                    await asyncio.wait_for(asyncio.shield(writer.drain()), 5)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1000), 1)
                    writer.write(dribble)
            except (OSError, TimeoutError):
                await asyncio.sleep(0.2)
            finally:
                if writer is not None:
                    writer.close()

    await asyncio.gather(*(one(number) for number in range(count)))


def _image(side: int, kind: str) -> str:
    out = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(out, kind)
    return base64.b64encode(out.getvalue()).decode()


def _json(path: str, value: Any, **headers: str) -> bytes:
    return request(path, json.dumps(value).encode(), **headers)


async def gigapixels(target: Target) -> None:
    """Small files of many pixels: up to the bound of one request, and far beyond it."""
    png, webp = _image(6000, "PNG"), _image(5000, "WEBP")
    await repeated(
        target,
        [
            _json("/v1/search/batch", {"images": [png] * 5}),
            _json("/v1/search/batch", {"images": [webp] * 7}),
            _json("/v1/search/batch", {"images": [png] * 80}),
            _json("/v1/search", {"image": png}),
        ],
        24,
    )


async def giant_vectors(target: Target) -> None:
    """JSON vectors of 30 MB, and batches of a million numbers."""
    giant = request("/v1/search", b'{"vector": [' + b"1," * 14_999_000 + b"1]}")
    batch = _json("/v1/search/batch", {"vectors": [[0.123456789] * 4000] * 250})
    await repeated(target, [giant, batch], 12)


async def slow_headers(target: Target) -> None:
    """Headers that never end."""
    await held(target, b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\n", b"X-More: 1\r\n")


async def slow_bodies(target: Target) -> None:
    """Bodies that never end."""
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    await held(target, head + b'Content-Length: 1000\r\n\r\n{"vector": [', b"1,")


async def batches(target: Target) -> None:
    """Many large batches at once, with all the hits that they may have."""
    rows = np.random.default_rng(0).normal(size=(256, target.dim)).round(4).tolist()
    await repeated(target, [_json("/v1/search/batch", {"vectors": rows, "k": 200})], 64)


async def huge_k(target: Target) -> None:
    """More neighbours than there are, and large groups."""
    row = [0.1] * target.dim
    grouped = {"vector": row, "k": 200, "group_by": "class", "group_size": 100}
    await repeated(
        target, [_json("/v1/search", {"vector": row, "k": 10**9}), _json("/v1/search", grouped)], 64
    )


async def deep_json(target: Target) -> None:
    """Lists in lists, and objects of many keys."""
    deep = request("/v1/search", b'{"vector": ' + b"[" * 4_000_000 + b"]" * 4_000_000 + b"}")
    keys = _json("/v1/search", {f"key {number}": {} for number in range(200_000)})
    await repeated(target, [deep, keys], 24)


async def packed_bodies(target: Target) -> None:
    """A gigabyte, gzipped."""
    packed = gzip.compress(b" " * (64 << 20))
    await repeated(target, [request("/v1/search", packed * 8, Content_Encoding="gzip")], 24)


async def pushes(target: Target) -> None:
    """Many large pushes."""
    image = _image(1000, "PNG")
    items = [{"image": image, "class": "flood"}] * 100
    await repeated(target, [_json("/v1/items", {"items": items})], 32)


async def pipelines(target: Target) -> None:
    """Hundreds of requests for long answers on one connection, and nobody who reads them."""
    many = b"".join(
        request(path, b"", "GET", Range="bytes=0-1,2-3,4-5")
        for path in ("/v1/classes?limit=10000", "/v1/projection?points=20000", "/v1/versions") * 100
    )
    await held(target, many, many, 64)


async def waits(target: Target) -> None:
    """Questions about a future that does not come."""
    await repeated(target, [_json("/v1/search", {"vector": [0.1] * target.dim, "min_seq": 1 << 40})], 128)


async def hang_ups(target: Target) -> None:
    """Work that is asked for and not waited for."""
    rows = np.random.default_rng(0).normal(size=(256, target.dim)).round(4).tolist()
    body = _json("/v1/search/batch", {"vectors": rows, "k": 100})

    async def one() -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await target.connect()
                writer.write(body)
                await writer.drain()
                await asyncio.sleep(0.1)
                writer.close()

    await asyncio.gather(*(one() for _ in range(32)))


ATTACKS: tuple[Attack, ...] = (
    gigapixels,
    giant_vectors,
    slow_headers,
    slow_bodies,
    batches,
    huge_k,
    deep_json,
    packed_bodies,
    pushes,
    pipelines,
    waits,
    hang_ups,
)


@contextlib.contextmanager
def attacked_by(attack: Attack, target: Target) -> Any:
    """Run `attack` in a process of its own as long as the block lasts."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=_run, args=(attack, target, stop), daemon=True)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(timeout=20)
        if process.is_alive():
            process.kill()


def _run(attack: Attack, target: Target, stop: Event) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def until_stopped() -> None:
        running = asyncio.ensure_future(attack(target))
        deadline = time.monotonic() + 120
        while not stop.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(until_stopped())
