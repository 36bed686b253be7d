"""Pushed images, vectors and labels become a shard of the inbox, durable before the answer, once a key."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stream_odml.ingest.landing import NewItem, ShardExists, land_items, push_name
from stream_odml.ingest.new_items import checked
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


@dataclass(frozen=True)
class Takes:
    """What a stream takes: images, or vectors of `dim` values; and whether labels of stored items."""

    dim: int | None
    labels: bool


class PushInbox:
    """Where pushes land."""

    def __init__(
        self,
        inbox: str,
        decoding: Decoding,
        options: StorageOptions | None = None,
        takes: Callable[[], Takes | None] = lambda: None,
    ) -> None:
        """`takes`: what the stream takes, or None while that is not known."""
        self._inbox, self._decoding, self._options, self._takes = inbox, decoding, options, takes
        self._landing = ShortestFirst(LANDING_THREADS, "land")

    async def push(self, images: Sequence[NewItem], key: str | None) -> PushReceipt:
        """Land `images` once each of them has been decoded; smaller pushes go first. Raises ApiError as `land`
        does, and 422 for an image that cannot be used."""
        _check_content(images, self._takes())
        for number, image in enumerate(images):
            if len(image.image) > MAX_IMAGE_BYTES:
                detail = (
                    f"image {number} of the request has {len(image.image)} bytes, at most {MAX_IMAGE_BYTES}"
                )
                raise unprocessable(str(Reason.OVERSIZED), detail, "send a smaller image")
        if encoded := [image.image for image in images if image.content == "image"]:
            await self._decoding.pixels(encoded, PROBE_PX)
        size = sum(image.nbytes for image in images)
        return await self._landing.run(size, self.land, images, key)

    def close(self) -> None:
        """End the threads after what they do now."""
        self._landing.close()

    def land(self, images: Sequence[NewItem], key: str | None) -> PushReceipt:
        """Land `images` as one shard. The shard's name comes from the key and its content from the images,
        so that a repetition, to whichever replica, finds its own file there and changes nothing. The receipt's ids
        are those under which the items will be found.

        Blocking. Raises ApiError: 422 for fields that no reader would take, 409 for a key that stood for other images,
        503 when the inbox cannot be written.
        """
        name = push_name(key or uuid.uuid4().hex)
        try:
            named = (
                replace(one, item_id=f"{name}/{row}") if one.item_id is None else one
                for row, one in enumerate(images)
            )
            items = list(checked(named))
            land_items(self._inbox, name, items, self._options)
        except RowError as bad:
            raise unprocessable(str(bad.reason), bad.detail, "fix or leave out that image") from None
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


def _check_content(items: Sequence[NewItem], takes: Takes | None) -> None:
    contents = {item.content for item in items}
    if len(contents) > 1:
        raise unprocessable("bad_items", f"a push of {' and '.join(sorted(contents))}s", "push them apart")
    if takes is None:
        return
    if contents == {"label"}:
        if not takes.labels:
            detail = "labels need a gallery of trunk features, which this stream does not keep"
            raise unprocessable("no_labels", detail, "push the image again with its class")
        return
    if contents != {"image" if takes.dim is None else "vector"}:
        wants = "images" if takes.dim is None else f"vectors of {takes.dim} values"
        raise unprocessable("bad_items", f"a push of {contents.pop()}s", f"this stream takes {wants}")
    wrong = next((i.vector.size for i in items if i.vector is not None and i.vector.size != takes.dim), None)
    if wrong is not None:
        raise unprocessable(
            "bad_dimension",
            f"a vector has {wrong} values, those of this stream {takes.dim}",
            "send the vectors of the model that the stream began with",
        )
