"""Queries on the threads that answer them: vectors share one FAISS thread and are batched, images have their own.

Protects: who asks little waits for no more than one job of those who ask much. Images are decoded one at a time, large
ones on a thread of their own, embedded a few at a time, and searched in slices; between any two of these steps a
request that has been given up ends.
"""

from __future__ import annotations

from asyncio import get_running_loop
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np

from stream_odml.config.service import ServiceOptions
from stream_odml.search.hits import Hit
from stream_odml.search.portable import PortableMap, portable_map
from stream_odml.service.backend import Answer, Embedded, Floats, Query, Question
from stream_odml.service.bundle import Bundle
from stream_odml.service.decoding import Decoding
from stream_odml.service.errors import ApiError, unprocessable, version_named
from stream_odml.service.pool import Coalescer, ShortestFirst
from stream_odml.store.errors import UnknownVersion

COALESCED = 64
"""Maximum requests per search."""
SHORT = 1 << 25
"""Multiplications of a search short enough (about 5 ms) for the event loop itself: a hand-over between threads costs
half a millisecond, and several where both want the interpreter's lock."""
SLICE = 1 << 30
"""Multiplications of one search, about a sixth of a second at most: what is longer is done in slices, between which
others have their turn."""
EMBEDDED_PIXELS = 1 << 19
"""Pixels that the model is given at once."""
FEW_VECTORS = 16
"""Vectors that are projected in less time than a thread takes to be handed them."""
PER_HIT = 1 << 15
"""Multiplications done in the time that one hit takes to be made."""
FILTERED = 64
"""Multiplications done in the time that a filter takes to look at one item."""


@dataclass(frozen=True, eq=False)
class _Ask:
    bundle: Bundle
    vectors: Floats
    version: str
    query: Query


class Answering:
    """Searches what `serving` gives. Belongs to one event loop; close it to end its threads."""

    def __init__(self, options: ServiceOptions, serving: Callable[[], Bundle]) -> None:
        self._options, self._serving = options, serving
        # OpenMP's thread count is a setting of the calling thread: every searching thread needs its own.
        self._searching = ThreadPoolExecutor(
            1, "search", initializer=faiss.omp_set_num_threads, initargs=(options.search_threads,)
        )
        self.decoding = Decoding(options)
        self._embedding = ShortestFirst(1, "embed")
        self._coalescer = Coalescer(
            self._searching, _answer_together, COALESCED, self._is_short, SLICE, _multiplications
        )
        self._loop_ready = False

    def close(self) -> None:
        """End the threads after what they do now."""
        self._searching.shutdown(cancel_futures=True)
        self._embedding.close()
        self.decoding.close()

    async def search(self, question: Question) -> Answer:
        """Find the neighbours of vectors or images in what is served now. ApiError 422 for another dimension or
        version, and for what is no image."""
        bundle, subject, version, query = self._serving(), question.subject, question.version, question.query
        vectors = subject if isinstance(subject, np.ndarray) else await self._embedded(bundle, subject)
        if bundle.embedder.takes_vectors and version is None:
            vectors = await self._projected(bundle, vectors)
        made_by = bundle.version if version is None else _named(bundle, version)
        dim = await self._dim_of(bundle, made_by)
        if vectors.shape[1] != dim:
            raise unprocessable(
                "bad_dimension",
                f"the vector has {vectors.shape[1]} values, those of version {made_by} {dim}",
                "use the gallery's model, and say which version made the vector",
            )
        ask = _Ask(bundle, vectors, made_by, query)
        cost = _multiplications(ask)
        if cost <= SLICE:
            return Answer(bundle.version, bundle.sequence, await self._coalescer.ask(ask, cost))
        hits: list[Sequence[Hit]] = []
        rows = max(1, int(len(vectors) * SLICE / cost))
        for start in range(0, len(vectors), rows):
            part = _Ask(bundle, vectors[start : start + rows], made_by, query)
            hits += await self._coalescer.ask(part, cost)
        return Answer(bundle.version, bundle.sequence, hits)

    async def embed(self, images: Sequence[bytes]) -> Embedded:
        """Embed encoded images by the served model. ApiError 422 for what is no image."""
        bundle = self._serving()
        return Embedded(bundle.version, bundle.sequence, await self._embedded(bundle, images))

    async def map_between(self, start: str, end: str) -> PortableMap:
        """Return the way from vectors of `start` into the space of `end`. ApiError 422 for a version that is not known,
        or whose model is not kept; 409 for a way that numpy alone cannot go."""
        bundle = self._serving()
        snapshot, a, b = bundle.snapshot, _named(bundle, start), _named(bundle, end)
        loop = get_running_loop()
        try:  # on a thread: it may read the files of a version
            return await loop.run_in_executor(
                self._searching, portable_map, snapshot.space, snapshot.tree, a, b
            )
        except UnknownVersion as error:
            raise unprocessable("retired_version", str(error), "embed the images again") from None
        except ValueError as error:
            raise ApiError(
                409, "no_portable_map", str(error), "ask the service to map: send the vector with its version"
            ) from None

    async def _dim_of(self, bundle: Bundle, version: str) -> int:
        snapshot = bundle.snapshot
        if version == snapshot.version or snapshot.space.head is None:
            return snapshot.dim
        try:
            # On a thread: it may read the version's head.
            return await get_running_loop().run_in_executor(self._searching, snapshot.dim_of, version)
        except UnknownVersion as error:
            raise unprocessable("retired_version", str(error), "embed the image again") from None

    def _is_short(self, asks: Sequence[_Ask]) -> bool:
        if not self._loop_ready:
            faiss.omp_set_num_threads(self._options.search_threads)
            self._loop_ready = True
        # Without filter or groups, and made by a version whose drift map is at hand.
        plain = all(a.bundle.snapshot.space.is_at_hand(a.version) and _is_unfiltered(a.query) for a in asks)
        return plain and sum(map(_multiplications, asks)) <= SHORT

    async def _embedded(self, bundle: Bundle, images: Sequence[bytes]) -> Floats:
        """Embed encoded images by the bundle's own model: [n, d]. ApiError 422 for what is no image."""
        if bundle.embedder.takes_vectors:
            raise unprocessable(
                "no_images",
                "this stream takes vectors (model.backbone: none)",
                "send the vector of the image",
            )
        size = bundle.embedder.spec.image_size
        pixels = await self.decoding.pixels(images, size)
        at_once = max(1, EMBEDDED_PIXELS // (size * size))
        parts = [
            await self._embedding.run(len(pixels), bundle.embed, np.stack(pixels[start : start + at_once]))
            for start in range(0, len(pixels), at_once)
        ]
        return np.concatenate(parts)

    async def _projected(self, bundle: Bundle, vectors: Floats) -> Floats:
        """Return vectors as a stream of vectors takes them, by the served head: [n, dim]. ApiError 422 for
        another length."""
        takes = bundle.embedder.out_dim
        if vectors.shape[1] != takes:
            raise unprocessable(
                "bad_dimension",
                f"the vector has {vectors.shape[1]} values, this stream takes {takes}",
                "send a vector as it is pushed; with `version`, one in that version's space",
            )
        embeddings = bundle.snapshot.space.embeddings
        if len(vectors) <= FEW_VECTORS:
            return embeddings(vectors)
        return await self._embedding.run(len(vectors), embeddings, vectors)


def _named(bundle: Bundle, version: str) -> str:
    """Return the version that a client names, by its id or a beginning of it. ApiError 422."""
    if (found := version_named(bundle.snapshot.tree, version)) is not None:
        return found
    raise unprocessable(
        "unknown_version",
        f"version {version[:80]!a} made no vector of this gallery",
        "GET /v1/versions lists those it knows; min_version waits for one just committed",
    )


def _multiplications(ask: _Ask) -> float:
    snapshot = ask.bundle.snapshot
    hits = ask.query.k * (ask.query.group_size if ask.query.group_by_class else 1)
    looked_at = 0 if _is_unfiltered(ask.query) else snapshot.columns.n * FILTERED
    return len(ask.vectors) * (snapshot.multiplications + hits * PER_HIT) + looked_at


def _is_unfiltered(query: Query) -> bool:
    return not (query.group_by_class or query.filters)


def _answer_together(asks: Sequence[_Ask]) -> Sequence[Sequence[Sequence[Hit]] | Exception]:
    """Answer plain queries of one snapshot, version and k by one search, filtered and grouped ones alone."""
    together: dict[object, list[int]] = defaultdict(list)
    for place, ask in enumerate(asks):
        plain = (id(ask.bundle), ask.version, ask.query.k)
        together[plain if _is_unfiltered(ask.query) else place].append(place)
    replies: list[Sequence[Sequence[Hit]] | Exception] = [[] for _ in asks]
    for places in together.values():
        first, parts = asks[places[0]], [asks[place].vectors for place in places]
        query = first.query
        try:
            hits = first.bundle.snapshot.search(
                np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts), np.float32),
                first.version,
                query.k,
                query.filters,
                "class" if query.group_by_class else None,
                query.group_size,
            )
        except Exception as error:
            # A file of a version that cannot be read, say, and others ask for other versions.
            for place in places:
                replies[place] = error
            continue
        end = 0
        for place, part in zip(places, parts, strict=True):
            replies[place] = hits[end : end + len(part)]
            end += len(part)
    return replies
