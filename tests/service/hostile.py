"""Requests that nobody should send, each with the statuses that are right for it; for tests and benchmarks."""

from __future__ import annotations

import io
import json
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

LEAKS = ("Traceback", "/work", "/home", "/usr", "/tmp", "site-packages", ".py", "Error(", "0x7f")
JSON = "application/json"


@dataclass(frozen=True)
class Hostile:
    """One request. ``body`` may be an iterator of pieces: then it is sent chunked, at its own pace."""

    what: str
    allowed: frozenset[int]
    method: str = "POST"
    path: str = "/v1/search"
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


def hostile_requests(seed: int, count: int, token: str, most_bytes: int, dim: int = 8) -> Iterator[Hostile]:
    """``count`` requests of every kind in turn; all but the tokenless ones carry ``token``."""
    rng = random.Random(seed)
    makers: list[Callable[[random.Random, int, int], Hostile]] = [
        _tokenless, _giant, _endless, _bomb, _broken, _not_finite, _dimension, _version, _nonsense, _image, _form,
        _address,
    ]  # fmt: skip
    for number in range(count):
        # A slow client takes its whole second to be let go: a few are as good as many.
        maker = _slow if number % 100 == 99 else makers[number % len(makers)]
        request = maker(rng, most_bytes, dim)
        if maker is not _tokenless:
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


def _json(what: str, value: Any, *allowed: int, path: str = "/v1/search") -> Hostile:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Hostile(what, frozenset(allowed), path=path, body=body, headers={"Content-Type": JSON})


def _tokenless(rng: random.Random, most: int, dim: int) -> Hostile:
    path = rng.choice(["/v1/search", "/v1/items", "/v1/search/batch", "/v1/versions/x/rollback"])
    request = _json("no token", {"vector": [1.0] * dim}, 401, path=path)
    given = rng.choice([None, "", "Bearer", "Bearer wrong", "Basic eDp5", "Bearer " + "x" * 4000])
    if given is not None:
        request.headers["Authorization"] = given
    return request


def _giant(rng: random.Random, most: int, dim: int) -> Hostile:
    size = most + rng.randrange(1, most)
    return _json("giant body", b"[" + b"1," * (size // 2), 413, path=rng.choice(["/v1/search", "/v1/items"]))


def _endless(rng: random.Random, most: int, dim: int) -> Hostile:
    pieces = (b"x" * 65_536 for _ in range(2 * most // 65_536 + 4))
    return Hostile(
        "chunked beyond the limit", frozenset({413, 0}), body=pieces, headers={"Content-Type": JSON}
    )


def _bomb(rng: random.Random, most: int, dim: int) -> Hostile:
    side = rng.choice([20_000, 50_000, 100_000])
    return Hostile("image bomb", frozenset({422}), body=png_bomb(side), headers={"Content-Type": "image/png"})


def _broken(rng: random.Random, most: int, dim: int) -> Hostile:
    bodies = [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"nul",
        b"\xff\xfe",
        b"[" * 90_000,
        b'{"vector": [1.0' + b" " * 999,
    ]
    return _json("broken JSON", rng.choice(bodies), 400, path=rng.choice(["/v1/search", "/v1/search/batch"]))


def _not_finite(rng: random.Random, most: int, dim: int) -> Hostile:
    value = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "1e300"])
    text = f'{{"vector": [{", ".join([value] + ["1.0"] * (dim - 1))}]}}'
    return _json("vector that is not finite", text.encode(), 400, 422)


def _dimension(rng: random.Random, most: int, dim: int) -> Hostile:
    size = rng.choice([0, 1, dim - 1, dim + 1, 1000, 10_000])
    return _json("wrong dimension", {"vector": [1.0] * size}, 422)


def _version(rng: random.Random, most: int, dim: int) -> Hostile:
    version = rng.choice(["v9999-00000000", "", "../../etc/passwd\x00", 3, ["v0"], "v" * 5000])
    return _json("unknown version", {"vector": [1.0] * dim, "version": version}, 422)


def _nonsense(rng: random.Random, most: int, dim: int) -> Hostile:
    vector = [1.0] * dim
    bodies: list[dict[str, Any]] = [
        {}, {"vector": "1,2"}, {"vector": [[1.0]] * dim}, {"vector": vector, "k": 0}, {"vector": vector, "k": 10**9},
        {"vector": vector, "k": True}, {"vector": vector, "filter": {"clas": "x"}}, {"vector": vector, "more": 1},
        {"vector": vector, "group_by": "shard"}, {"vector": [10**400] * dim}, {"vector": vector, "min_seq": -1},
    ]  # fmt: skip
    return _json("nonsense", rng.choice(bodies), 422)


def _image(rng: random.Random, most: int, dim: int) -> Hostile:
    body = rng.choice(
        [b"", b"GIF89a", b"\xff\xd8\xff\xe0" + rng.randbytes(500), rng.randbytes(2000), b"<svg/>"]
    )
    kind = rng.choice(["image/png", "image/jpeg", "application/octet-stream"])
    return Hostile("no image", frozenset({400, 415, 422}), body=body, headers={"Content-Type": kind})


def _form(rng: random.Random, most: int, dim: int) -> Hostile:
    body = rng.choice([b"", b"--x--", b"--x\r\nno header\r\n--x--", b"--x\r\n" * 3000 + b"--x--"])
    kind = rng.choice(
        ["multipart/form-data; boundary=x", "multipart/form-data", "multipart/form-data; boundary="]
    )
    path = rng.choice(["/v1/search", "/v1/items"])
    # `--x--` alone is a whole form that holds nothing: a push of no images is understood, and refused for that.
    right = {400, 422} if body == b"--x--" else {400}
    return Hostile("broken form", frozenset(right), path=path, body=body, headers={"Content-Type": kind})


def _address(rng: random.Random, most: int, dim: int) -> Hostile:
    method, path, *allowed = rng.choice(
        [
            ("GET", "/v1/nothing", 404),
            ("GET", "/page/..%2f..%2fapi.py", 404),
            ("GET", "/v1/search", 405),
            ("PUT", "/v1/items", 405),
            ("GET", "/v1/classes?limit=0", 422),
            ("GET", "/v1/projection?points=99999999", 422),
            ("POST", "/v1/versions/nope/rollback", 404),
            ("GET", "/v1/versions/a/diff/b", 404),
            ("GET", "/v1/items/" + "x" * 3000, 404),
        ]
    )
    return Hostile("wrong address", frozenset(allowed), method=method, path=path)


def _slow(rng: random.Random, most: int, dim: int) -> Hostile:
    def drip() -> Iterator[bytes]:
        for _ in range(100):
            yield b" "
            time.sleep(0.05)

    return Hostile("slow client", frozenset({408, 0}), body=drip(), headers={"Content-Type": JSON})


def png_bomb(side: int) -> bytes:
    """A small PNG that declares ``side`` x ``side`` pixels and begins to deliver them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    out = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    out.seek(0, io.SEEK_END)
    out.write(chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)))
    out.write(chunk(b"IDAT", zlib.compress(bytes(1 << 20))))
    out.write(chunk(b"IEND", b""))
    return out.getvalue()
