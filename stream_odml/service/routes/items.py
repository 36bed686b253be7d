"""Items: push, look up, forget. A push is answered only when it would survive the loss of power."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_odml.ingest.fields import normalised
from stream_odml.ingest.kept_images import image_type
from stream_odml.ingest.landing import NewItem
from stream_odml.ingest.plain import NameTwice, json_once
from stream_odml.service.backend import Backend, Item
from stream_odml.service.body import (
    attributes_from,
    check_count,
    class_from,
    from_base64,
    id_from,
    item_vector,
    known_keys,
    media_type,
    moment,
    only_json,
    optional_name,
    read_form,
    read_json,
    unsupported,
)
from stream_odml.service.errors import bad_request, not_found, unprocessable
from stream_odml.service.multipart import Part, images_of
from stream_odml.service.openapi import LABEL_BODY, PUSH_BODY
from stream_odml.service.replies import backend_of, item_json, options_of, reply

router = APIRouter(prefix="/v1", tags=["items"], default_response_class=Response)

_ITEM_KEYS = frozenset({"image", "vector", "class", "id", "attributes", "time"})
_FIELDS = frozenset({"class", "id", "attributes", "time"})


@router.post("/items", openapi_extra=PUSH_BODY, status_code=202, summary="Push images or vectors")
async def push(request: Request) -> Response:
    """Land images durably as one shard of the stream; searchable within seconds. A stream of vectors
    (`model.backbone: none`) takes vectors in place of images; whose class is not known yet goes without.

    Repeat with the same Idempotency-Key after a failure: the images land once, the answer is the same.
    """
    backend = backend_of(request, "push")
    key = optional_name(request.headers.get("idempotency-key"), "Idempotency-Key")
    images = await _pushed(request)
    check_count(len(images), options_of(request).max_batch, "images in the push")
    given = [image.item_id for image in images if image.item_id is not None]
    if len(set(given)) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise unprocessable(
            "duplicate_id", f"two images of the push have the id {twice!a}", "give each its own id"
        )
    return await _landed(backend, images, key)


async def _landed(backend: Backend, items: list[NewItem], key: str | None) -> Response:
    receipt = await backend.push(items, key)
    answer = {"stream": backend.stream_id(), "shard": receipt.shard, "ids": list(receipt.item_ids)}
    return reply(answer, 202)


async def _pushed(request: Request) -> list[NewItem]:
    kind = media_type(request)
    if kind == "multipart/form-data":
        return await read_form(request, _from_form)
    if kind != "application/json":
        raise unsupported(request, "application/json or multipart/form-data")
    return await read_json(request, _from_body)


def _from_body(body: dict[str, Any]) -> list[NewItem]:
    known_keys(body, frozenset({"items"}))
    items = body.get("items")
    if not isinstance(items, list):
        raise unprocessable("bad_items", "items is not a list", 'send {"items": [{"image", "class"}]}')
    return [_from_json(item) for item in items]


def _from_json(item: Any) -> NewItem:
    if not isinstance(item, dict):
        raise unprocessable("bad_items", "an item is not an object", 'send {"image": base64, "class": name}')
    known_keys(item, _ITEM_KEYS)
    if "vector" not in item:
        return _image(from_base64(item.get("image"), "image"), item)
    if "image" in item:
        raise unprocessable(
            "bad_items", "an item has both image and vector", "send the one that the stream takes"
        )
    return NewItem(
        class_name="" if item.get("class") is None else class_from(item["class"]),
        vector=item_vector(item["vector"]),
        **_about(item),
    )


def _from_form(parts: list[Part]) -> list[NewItem]:
    """Return the items of a form. Its fields hold for every `image` part; `id` only where there is one image."""
    named = [part.name for part in parts if part.name != "image"]
    fields: dict[str, Any] = {part.name: part.text() for part in parts if part.name != "image"}
    known_keys(fields, _FIELDS)
    if len(fields) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise bad_request(f"the form has the field {twice} more than once", "send each field once")
    images = images_of(parts)
    if "id" in fields and len(images) != 1:
        raise unprocessable(
            "bad_items", "one id cannot name several images", "push them one by one, or as JSON"
        )
    if "attributes" in fields:
        try:
            fields["attributes"] = json_once(fields["attributes"])
        except (ValueError, RecursionError) as error:
            detail = f": {error}" if isinstance(error, NameTwice) else ""
            raise bad_request(
                f"the form field attributes is not JSON{detail}", "send an object of strings"
            ) from None
    return [_image(image, fields) for image in images]


def _image(data: bytes, fields: dict[str, Any]) -> NewItem:
    if not data:
        raise unprocessable("bad_image", "an image has no bytes", "send the content of an image file")
    return NewItem(image=data, class_name=class_from(fields.get("class")), **_about(fields))


def _about(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "item_id": id_from(fields.get("id")),
        "attributes": attributes_from(fields.get("attributes")),
        "time": moment(fields.get("time"), "time"),
    }


# Item ids hold slashes ("shard/row"), so the thumbnail route, which is the longer one, must come first.
@router.get("/items/{item_id:path}/thumbnail", summary="Small picture of an item")
async def thumbnail(item_id: str, request: Request) -> Response:
    """Return the stored thumbnail; 404 if none is kept. It never changes, so browsers may keep it."""
    whole = f"{item_id}/thumbnail"
    if _is_quoted(request):
        return await item(whole, request)
    item_id = normalised(item_id)
    backend = backend_of(request, "thumbnail")
    data = await backend.thumbnail(item_id)
    if data is None:
        if await backend.item(normalised(whole)) is not None:  # a client that leaves slashes as they are
            return await item(whole, request)
        raise not_found(
            "no_thumbnail",
            f"item {item_id[:80]!a} has no thumbnail",
            "the service keeps none; show another picture",
        )
    return Response(data, media_type=image_type(data), headers={"Cache-Control": "private, max-age=3600"})


def _is_quoted(request: Request) -> bool:
    """Return whether the last slash was sent as %2F, and so belongs to the id of an item called "…/thumbnail"."""
    raw: bytes | None = request.scope.get("raw_path")
    return raw is not None and not raw.partition(b"?")[0].endswith(b"/thumbnail")


@router.get("/items/{item_id:path}", summary="One item")
async def item(item_id: str, request: Request) -> Response:
    """Return what the gallery holds of one item."""
    item_id = normalised(item_id)
    return reply(item_json(await _known(backend_of(request, "item"), item_id)))


async def _known(backend: Backend, item_id: str) -> Item:
    if (found := await backend.item(item_id)) is not None:
        return found
    raise not_found(
        "unknown_item", f"item {item_id[:80]!a} is not in the gallery", "it may not be indexed yet"
    )


@router.patch(
    "/items/{item_id:path}", openapi_extra=LABEL_BODY, status_code=202, summary="Say the class of an item"
)
async def label(item_id: str, request: Request) -> Response:
    """Land a label durably: the item, as it is stored, lands again under this class, and is learnt with the task that
    its label becomes part of. For items that came without a class, and for those whose class was wrong."""
    item_id = normalised(item_id)
    backend = backend_of(request, "label")
    only_json(request)
    name = await read_json(request, _class_from_body)
    await _known(backend, item_id)
    return await _landed(backend, [NewItem(class_name=name, item_id=item_id, is_label=True)], None)


def _class_from_body(body: dict[str, Any]) -> str:
    known_keys(body, frozenset({"class"}))
    return class_from(body.get("class"))


@router.delete("/items/{item_id:path}", status_code=202, summary="Forget an item")
async def forget_item(item_id: str, request: Request) -> Response:
    """Ask the driver for a tombstone: readers stop showing the item at their next look at the store.

    The answer says how many items it covers; a name that covers none is 404.
    """
    return reply(await backend_of(request, "forget").forget("item", normalised(item_id)), 202)


@router.delete("/shards/{shard_id:path}", status_code=202, summary="Forget a shard")
async def forget_shard(shard_id: str, request: Request) -> Response:
    """Ask the driver to forget all items of a shard, by its id or its name."""
    return reply(await backend_of(request, "forget").forget("shard", normalised(shard_id)), 202)
