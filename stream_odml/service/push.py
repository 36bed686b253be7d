"""Pushed images become a shard of the inbox, durable before they are acknowledged, once for each key."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

from stream_odml.ingest.landing import NewItem, ShardExists, checked, land_items, push_name
from stream_odml.ingest.rawrow import MAX_IMAGE_BYTES
from stream_odml.ingest.reasons import Reason, RowError
from stream_odml.service.backend import PushReceipt
from stream_odml.service.decoding import Decoding
from stream_odml.service.errors import ApiError, unavailable, unprocessable
from stream_odml.service.pool import ShortestFirst
from stream_odml.storage.reading import StorageOptions

LANDING_THREADS = 2
PROBE_PX = 32
"""Images are decoded to this size before they are taken."""


class PushInbox:
    """Where pushes land."""

    def __init__(self, inbox: str, decoding: Decoding, options: StorageOptions | None = None) -> None:
        self._inbox, self._decoding, self._options = inbox, decoding, options
        self._landing = ShortestFirst(LANDING_THREADS, "land")

    async def push(self, images: Sequence[NewItem], key: str | None) -> PushReceipt:
        """Land ``images`` once each of them has been decoded; smaller pushes go first. Raises ApiError as `land`
        does, and 422 for an image that cannot be used."""
        for number, image in enumerate(images):
            check_size(number, image.image)
        await self._decoding.pixels([image.image for image in images], PROBE_PX)
        size = sum(len(image.image) for image in images)
        return await self._landing.run(size, self.land, images, key)

    def close(self) -> None:
        """End the threads after what they do now."""
        self._landing.close()

    def land(self, images: Sequence[NewItem], key: str | None) -> PushReceipt:
        """Land ``images`` as one shard. The shard's name comes from the key and its content from the images,
        so that a repetition, to whichever replica, finds its own file there and changes nothing. The receipt's ids
        are those under which the items will be found.

        Blocking. Raises ApiError: 422 for fields that no reader would take, 409 for a key that stood for other images,
        503 when the inbox cannot be written.
        """
        name = push_name(key or uuid.uuid4().hex)
        try:
            items = list(checked(_identified(image, f"{name}/{row}") for row, image in enumerate(images)))
            land_items(self._inbox, name, items, self._options)
        except RowError as bad:
            raise unprocessable(str(bad.reason), bad.detail, "mend or leave out that image") from None
        except ShardExists:
            raise ApiError(
                409,
                "key_reused",
                "this Idempotency-Key was used for other images",
                "repeat a push unchanged, or choose a new key",
            ) from None
        except OSError as error:
            raise unavailable("inbox_unavailable", "the push could not be stored", 5) from error
        return PushReceipt(f"{name}.parquet", [str(item.item_id) for item in items])


def check_size(number: int, image: bytes) -> None:
    """Raise ApiError 422 for an image of more bytes than indexing takes."""
    if len(image) > MAX_IMAGE_BYTES:
        detail = f"image {number} of the request has {len(image)} bytes, at most {MAX_IMAGE_BYTES}"
        raise unprocessable(str(Reason.OVERSIZED), detail, "send a smaller image")


def _identified(image: NewItem, default_id: str) -> NewItem:
    return image if image.item_id is not None else replace(image, item_id=default_id)
