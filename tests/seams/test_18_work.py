"""Seam 18: images, vectors and answers of any size take neither the event loop nor the threads from who asks little:
they are bounded before they are worked on, done in small steps, and the cheapest go first."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.types import ASGIApp

from stream_odml.config.service import DEFAULT_MAX_PIXELS, ServiceOptions
from stream_odml.ingest.decode import declared_pixels, decode_image, encode_image
from stream_odml.ingest.reasons import BadImage, Reason
from stream_odml.service import answering, decoding
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from tests.seams.caller import Caller
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi
from tests.service.tiny_stream import SPEC, TinyStream, picture

# --- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[TinyStream]:
    stream = TinyStream(tmp_path)
    stream.land("a", ["cat", "dog"])
    yield stream
    stream.close()


def replica_of(stream: TinyStream, options: ServiceOptions) -> Replica:
    replica = Replica(stream.root, options)
    replica.start()
    return replica


def flat(side: int) -> bytes:
    """A PNG of few bytes and many pixels."""
    return encode_image(np.zeros((side, side, 3), np.uint8), "PNG")


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG, grey, whose scans each say "nothing more" of all blocks in some sixty bytes."""
    blocks, runs = (side // 8) ** 2, []
    while blocks:
        run = min(blocks, 32767)
        bits = run.bit_length() - 1  # symbol: a run of 2^bits and as many bits more
        runs.append(f"{bits:04b}" + f"{run - (1 << bits):b}".zfill(bits) * bool(bits))
        blocks -= run
    table = bytes([0, 0, 0, 15, *[0] * 12])  # fifteen codes of four bits
    text = "".join(runs)
    padded = text + "1" * (-len(text) % 8)
    data = int(padded, 2).to_bytes(len(padded) // 8, "big").replace(b"\xff", b"\xff\0")
    head = b"\xff\xd8" + segment(0xDB, bytes([0, *[1] * 64]))
    head += segment(0xC2, bytes([8, *side.to_bytes(2, "big"), *side.to_bytes(2, "big"), 1, 1, 0x11, 0]))
    head += segment(0xC4, bytes([0x10]) + table + bytes(n << 4 for n in range(15)))
    return head + (segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + data) * scans + b"\xff\xd9"


def test_a_jpeg_of_more_scans_than_any_encoder_writes_is_no_work() -> None:
    """Each scan goes over all pixels: a megabyte of them took half a minute, which nothing can cancel."""
    start = time.process_time()
    assert decode_image(many_scans(1024, 50), 16, 1 << 20).shape == (16, 16, 3)
    bomb = many_scans(8000, 8_000)
    assert len(bomb) < 1 << 20
    with pytest.raises(BadImage, match="more than 100 scans") as refused:
        decode_image(bomb, 16, DEFAULT_MAX_PIXELS)
    assert refused.value.reason is Reason.IMAGE_BOMB
    assert time.process_time() - start < 1.0


def many_strips(count: int, order: str = "<", kind: int = 4) -> bytes:
    """A TIFF of one column whose rows are a strip each, all of them the same byte."""
    size = {1: 1, 3: 2, 4: 4}[kind]
    at = 8 + 2 + 9 * 12 + 4
    tags = [(256, 4, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, kind, count, at), (277, 3, 1, 1), (278, 4, 1, 1), (279, 3, count, at + size * count)]  # fmt: skip
    rows = [struct.pack(f"{order}HHI", *tag[:3]) + struct.pack(f"{order}I" if tag[1] == 4 or tag[2] > 1
            else f"{order}H2x", tag[3]) for tag in tags]  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    offsets = struct.pack(f"{order}{'BHI'[(1, 3, 4).index(kind)]}", 8) * count
    return head + b"".join(rows) + bytes(4) + offsets + struct.pack(f"{order}H", 1) * count


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_a_tiff_of_more_strips_than_any_image_has_rows_is_no_work(order: str, kind: int) -> None:
    """Each became objects of Python while the file was opened to count its pixels: six megabytes took 340 of memory."""
    assert declared_pixels(many_strips(1000, order), 1 << 20) == 1000
    assert decode_image(many_strips(1000, order), 16, 1 << 20).shape == (16, 16, 3)
    bomb = many_strips(1_000_000, order, kind)
    start = time.process_time()
    for read in (
        lambda: declared_pixels(bomb, DEFAULT_MAX_PIXELS),
        lambda: decode_image(bomb, 16, DEFAULT_MAX_PIXELS),
    ):
        with pytest.raises(BadImage, match="a TIFF of 1000000 strips") as refused:
            read()
        assert refused.value.reason is Reason.IMAGE_BOMB
    assert time.process_time() - start < 0.5


def test_what_cameras_put_around_a_jpeg_is_no_scan() -> None:
    """A preview in front, a film behind, each with bytes that look like scans; and stuffed bytes between."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", progressive=True, quality=95, exif=Image.Exif())
    image = out.getvalue()
    preview = segment(0xE2, b"\xff\xd8" + b"\xff\xda" * 5000)
    film = b"\xff\xda" * 5000
    plain = decode_image(image, 16, 1 << 20)
    for made in (image[:2] + preview * 3 + image[2:] + film, image.replace(b"\xff\xda", b"\xff\xff\xff\xda")):
        np.testing.assert_array_equal(decode_image(made, 16, 1 << 20), plain)


def test_pixels_are_counted_over_the_whole_request_before_any_is_decoded(
    stream: TinyStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counting(image: bytes, size: int, limit: int) -> Any:
        decoded.append(1)
        return decode_image(image, size, limit)

    monkeypatch.setattr(decoding, "decode_image", counting)
    options = ServiceOptions(max_pixels=1 << 20, max_request_pixels=3 << 20)
    replica = replica_of(stream, options)
    bomb = base64.b64encode(flat(1000)).decode()
    with LocalApi(create_app(replica, options, replica.metrics)) as api:
        refused = api.post("/v1/search/batch", json={"images": [bomb] * 4})
        pushed = api.post("/v1/items", json={"items": [{"image": bomb, "class": "a"}] * 4})
        assert (refused.status_code, refused.json()["error"]) == (422, "too_many_pixels")
        assert (pushed.status_code, pushed.json()["error"]) == (422, "too_many_pixels")
        assert not decoded
        assert api.post("/v1/search/batch", json={"images": [bomb] * 3}).status_code == 200
        assert len(decoded) == 3
    replica.close()
    assert declared_pixels(flat(1000), DEFAULT_MAX_PIXELS) == 1_000_000


def test_decoding_stops_between_two_images(stream: TinyStream, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def slow(image: bytes, size: int, limit: int) -> Any:
        decoded.append(1)
        time.sleep(0.1)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(decoding, "decode_image", slow)
    options = ServiceOptions(timeout_s=0.35)
    replica = replica_of(stream, options)
    with LocalApi(create_app(replica, options, replica.metrics)) as api:
        images = [base64.b64encode(picture(0)).decode()] * 50
        assert api.post("/v1/search/batch", json={"images": images}).status_code == 504
        in_time = len(decoded)
        time.sleep(0.5)
    assert len(decoded) <= in_time + 1  # the one that was under way
    replica.close()


def test_a_small_image_waits_for_neither_large_ones_nor_many(
    stream: TinyStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def slow(image: bytes, size: int, limit: int) -> Any:
        decoded.append(len(image))
        time.sleep(0.4 if len(image) > 3000 else 0.05)
        return decode_image(image, size, limit)

    monkeypatch.setattr(decoding, "decode_image", slow)
    monkeypatch.setattr(decoding, "LARGE", 500_000)
    options = ServiceOptions(timeout_s=120)
    replica = replica_of(stream, options)
    app = create_app(replica, options, replica.metrics)
    large = json.dumps({"images": [base64.b64encode(flat(1000)).decode()] * 4}).encode()
    many = json.dumps({"images": [base64.b64encode(picture(1)).decode()] * 40}).encode()

    async def run() -> tuple[int, int]:
        floods = [
            asyncio.create_task(Caller(app, "a").ask("/v1/search/batch", body))
            for body in (large, large, many, many)
        ]
        while len(decoded) < 3:
            await asyncio.sleep(0.01)
        before = len(decoded)
        status = await Caller(app, "b").ask("/v1/search", picture(0), headers={"content-type": "image/png"})
        meanwhile = len(decoded) - before
        for flood in floods:
            flood.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
        return meanwhile, status

    meanwhile, status = asyncio.run(run())
    replica.close()
    assert status == 200
    assert meanwhile < 20  # of 88


# --- vectors ---------------------------------------------------------------------------------------------------------


def longest_pause(app: ASGIApp, *asked: tuple[str, bytes]) -> tuple[float, list[int]]:
    """How long this process computed without a turn of its event loop while `app` answered, and the statuses."""

    async def run() -> tuple[float, list[int]]:
        pauses = [0.0]

        async def tick() -> None:
            while True:
                began = time.process_time()  # who else keeps the machine busy does not count
                await asyncio.sleep(0.001)
                pauses.append(time.process_time() - began)

        ticking = asyncio.create_task(tick())
        statuses = [await Caller(app, "a").ask(path, body) for path, body in asked]
        ticking.cancel()
        return max(pauses), statuses

    return asyncio.run(run())


def test_a_vector_of_30_mb_does_not_stop_the_loop() -> None:
    app = create_app(FakeBackend(), ServiceOptions(timeout_s=60))
    giant = b'{"vector": [' + b"1," * 14_999_000 + b"1]}"
    batch = json.dumps({"vectors": [[0.123456789] * 4000] * 250}).encode()
    deep = b'{"vector": ' + b"[" * 15_000_000 + b"]" * 15_000_000 + b"}"
    broken = batch[:-1]
    pause, statuses = longest_pause(
        app, ("/v1/search", giant), ("/v1/search/batch", batch), ("/v1/search", deep), ("/v1/search/batch", broken),
        ("/v1/items", giant),
    )  # fmt: skip
    assert statuses == [413, 422, 400, 400, 413]
    assert pause < 0.7


def test_a_huge_answer_is_refused_or_written_off_the_loop() -> None:
    app = create_app(FakeBackend(n_classes=200, per_class=10, dim=8), ServiceOptions(timeout_s=60))
    vectors = [[1.0] * 8] * 256
    allowed = json.dumps({"vectors": vectors, "k": 200}).encode()
    refused = json.dumps({"vectors": vectors, "k": 200, "group_by": "class", "group_size": 100}).encode()
    _, statuses = longest_pause(app, ("/v1/search/batch", allowed), ("/v1/search/batch", refused))
    assert statuses == [200, 422]


def test_a_long_batch_lets_single_queries_in_between(
    stream: TinyStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = answering._answer_together
    sizes: list[int] = []

    def slow(asks: Any) -> Any:
        sizes.append(sum(len(ask.vectors) for ask in asks))
        time.sleep(0.05 * sizes[-1] / 8)
        return real(asks)

    monkeypatch.setattr(answering, "_answer_together", slow)
    monkeypatch.setattr(answering, "SHORT", -1)
    monkeypatch.setattr(answering, "SLICE", 8 * (10 * answering.PER_HIT + SPEC.dim * 4))
    options = ServiceOptions(timeout_s=120)
    replica = replica_of(stream, options)
    app = create_app(replica, options, replica.metrics)
    rows = np.random.default_rng(0).normal(size=(256, SPEC.dim)).round(3).tolist()

    async def run() -> tuple[int, list[int]]:
        batches = [
            asyncio.create_task(
                Caller(app, "a").ask("/v1/search/batch", json.dumps({"vectors": rows}).encode())
            )
            for _ in range(4)
        ]
        while len(sizes) < 3:
            await asyncio.sleep(0.01)
        before = len(sizes)
        one = await Caller(app, "b").ask("/v1/search", json.dumps({"vector": rows[0]}).encode())
        meanwhile = len(sizes) - before
        return meanwhile, [one, *await asyncio.gather(*batches)]

    meanwhile, statuses = asyncio.run(run())
    replica.close()
    assert statuses == [200] * 5
    assert max(sizes) <= 16
    assert meanwhile < 20  # of over a hundred slices


def test_slices_answer_as_the_whole_does(stream: TinyStream, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ServiceOptions()
    rows = np.random.default_rng(0).normal(size=(37, SPEC.dim)).round(3).tolist()
    replica = replica_of(stream, options)
    with LocalApi(create_app(replica, options, replica.metrics)) as api:
        whole = api.post("/v1/search/batch", json={"vectors": rows, "k": 3}).json()
        monkeypatch.setattr(answering, "SLICE", 5 * (3 * answering.PER_HIT + SPEC.dim * 4))
        sliced = api.post("/v1/search/batch", json={"vectors": rows, "k": 3}).json()
    replica.close()
    # The last digit of a score may be another: a processor adds up few rows in another order than many.
    scores = [
        [hit.pop("score") for one in found["results"] for hit in one["hits"]] for found in (sliced, whole)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=5e-6)
    assert sliced == whole


def test_who_waits_for_a_version_leaves_places_to_others(stream: TinyStream) -> None:
    options = ServiceOptions(max_ongoing_requests=8, wait_s=1)
    replica = replica_of(stream, options)
    app = create_app(replica, options, replica.metrics)
    row = [1.0] * SPEC.dim
    waits = json.dumps({"vector": row, "min_seq": 1 << 40}).encode()

    async def run() -> tuple[list[int], int]:
        waiting = [asyncio.create_task(Caller(app, "a").ask("/v1/search", waits)) for _ in range(40)]
        await asyncio.sleep(0.1)
        one = await Caller(app, "a").ask("/v1/search", json.dumps({"vector": row}).encode())
        return await asyncio.gather(*waiting), one

    waiting, one = asyncio.run(run())
    replica.close()
    assert one == 200
    assert set(waiting) == {503}
