"""The stream that needs no data: endless, repeatable, distinct, neither trivial nor hopeless."""

from __future__ import annotations

import itertools
import time

import numpy as np

from stream_odml.config.service import DEFAULT_MAX_PIXELS as LIMIT
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.glyphs import glyph_categories


def take(count: int, **settings: int) -> list[tuple[str, list[bytes]]]:
    return [tuple(category) for category in itertools.islice(glyph_categories(**settings), count)]  # type: ignore[misc]


def test_repeatable_and_resumable() -> None:
    stream = take(12, seed=1, images=4)
    assert take(12, seed=1, images=4) == stream
    assert take(4, seed=1, images=4, start=8) == stream[8:]
    assert take(12, seed=2, images=4) != stream


def test_never_ends_and_never_repeats_a_name() -> None:
    names = [name for name, _ in take(300, seed=0, images=1, start=2600)]
    assert len(set(names)) == 300
    assert any(" + " in name for name in names)
    assert any(" + " not in name for name in names)


def test_images_are_small_pictures_that_all_differ() -> None:
    for name, images in take(5, seed=3, images=10, size=48):
        assert name.startswith("U+")
        assert len(set(images)) == 10
        for image in images:
            assert decode_image(image, 48, LIMIT).std() > 5


def test_pixels_alone_do_better_than_chance_and_are_far_from_solving_it() -> None:
    stream = take(60, seed=0, images=8)
    pixels = np.stack([decode_image(image, 32, LIMIT) for _, images in stream for image in images]).mean(-1)
    flat = pixels.reshape(len(pixels), -1)
    flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    near = flat @ flat.T
    np.fill_diagonal(near, -np.inf)
    recall = (near.argmax(1) // 8 == np.arange(len(flat)) // 8).mean()
    assert 0.1 < recall < 0.85


def test_fast_enough_to_stream() -> None:
    stream = glyph_categories(0, images=20)
    next(stream)
    start = time.thread_time()
    list(itertools.islice(stream, 10))
    assert time.thread_time() - start < 0.6  # 200 images
