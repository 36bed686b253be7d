"""Images of clients into pixels: counted by their headers first, then decoded on threads apart from all queries."""

from __future__ import annotations

from collections.abc import Sequence

from stream_odml.config.service import ServiceOptions
from stream_odml.ingest.decode import Pixels, declared_pixels, decode_image
from stream_odml.ingest.reasons import REMEDIES, BadImage
from stream_odml.service.errors import ApiError, unprocessable
from stream_odml.service.pool import ShortestFirst

LARGE = 4_000_000
"""Pixels from which an image takes a tenth of a second or more: such ones have a thread of their own."""


class Decoding:
    """Decodes for all requests of a replica. Belongs to one event loop; close it to end its threads."""

    def __init__(self, options: ServiceOptions) -> None:
        self._options = options
        self._small = ShortestFirst(options.image_threads, "decode")
        self._large = ShortestFirst(1, "decode-large")

    async def pixels(self, images: Sequence[bytes], size: int) -> list[Pixels]:
        """Return RGB pixels [size, size, 3] of each image, one job an image. Raises ApiError 422 for an image that
        cannot be used, or for more pixels than one request may bring."""
        counts = await self._small.run(0, self._counted, images)
        total = sum(counts)
        found = []
        for number, (image, count) in enumerate(zip(images, counts, strict=True)):
            pool = self._large if count > LARGE else self._small
            found.append(await pool.run(total, decode_checked, number, image, size, self._options.max_pixels))
        return found

    def _counted(self, images: Sequence[bytes]) -> list[int]:
        counts, total = [], 0
        for number, image in enumerate(images):
            try:
                counts.append(declared_pixels(image, self._options.max_pixels))
            except BadImage as bad:
                raise _refused(number, bad) from None
            total += counts[-1]
            if total > self._options.max_request_pixels:
                raise unprocessable(
                    "too_many_pixels",
                    f"the images have more than {self._options.max_request_pixels} pixels together",
                    "send fewer images in one request, or smaller ones",
                )
        return counts

    def close(self) -> None:
        """End the threads after what they do now."""
        self._small.close()
        self._large.close()


def decode_checked(number: int, image: bytes, size: int, max_pixels: int) -> Pixels:
    """Return RGB pixels [size, size, 3] of an image. Raises ApiError 422 if it cannot be used."""
    try:
        return decode_image(image, size, max_pixels)
    except BadImage as bad:
        raise _refused(number, bad) from None


def _refused(number: int, bad: BadImage) -> ApiError:
    return unprocessable(
        str(bad.reason), f"image {number} of the request cannot be used", REMEDIES[bad.reason]
    )
