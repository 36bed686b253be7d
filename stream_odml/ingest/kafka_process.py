"""A Kafka source in a process of its own, `python -m stream_odml.ingest.kafka_process`.

Protects: the driver, from the client library, which may end its process where a followed topic is deleted and made
anew (librdkafka's issue 5093). A reader that ended is started again and goes on where the ledger says.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stream_odml.ingest.child import END, READ, BadMessage, Child, Pipe, how_it_ended, take_pipe
from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import LogFigures
from stream_odml.ingest.spool import Spool
from stream_odml.ingest.topic_position import TopicReplaced, stamps_of
from stream_odml.storage.reading import StorageOptions

HANG_S = 120.0
"""Longest that a reader has for one answer; one that hangs is ended and started again."""
END_S = 5.0
MAX_ANSWER_BYTES = 1 << 30
_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (TransientReadError, TopicReplaced, ValueError, ImportError)
}


class KafkaProcess:
    """A `LogSource`, `Inspectable`: see `KafkaSource`, which the process runs; errors are the same. Raises ValueError
    for options that the client does not know, ImportError where there is no client."""

    def __init__(
        self, topics: Sequence[str], options: KafkaOptions, place: str, storage: StorageOptions | None
    ) -> None:
        self._topics, self._options = tuple(topics), options
        self._job: dict[str, Any] = {"topics": self._topics, "options": asdict(options), "place": place}
        self._job["storage"] = None if storage is None else dict(storage)
        self._returned: set[str] = set()
        """Ids of shards that the ledger may not have yet."""
        self._figures: tuple[LogFigures, ...] = ()
        self._child: Child | None = None
        # One that is killed so early comes again with the first poll.
        with contextlib.suppress(TransientReadError):
            self._start()

    @property
    def pid(self) -> int | None:
        """Return the id of the process that reads."""
        return None if self._child is None else self._child.pid

    def poll(self, known: Collection[str]) -> list[ShardRef]:
        """See `Source`. Raises TransientReadError, TopicReplaced."""
        answer = self._ask({"call": "poll"}, known)
        refs = [ShardRef.from_dict(body) for body in answer["refs"]]
        self._returned.update(ref.shard_id for ref in refs)
        return refs

    def settle(self, waiting: Collection[str], is_ledgered: Callable[[str], bool]) -> None:
        self._returned = {shard_id for shard_id in self._returned if not is_ledgered(shard_id)}
        stamps = [str(stamp) for stamp in stamps_of(waiting, self._topics)]
        answer = self._ask({"call": "settle", "waiting": stamps, "missing": sorted(self._returned)})
        self._figures = tuple(LogFigures(**figures) for figures in answer["figures"])

    def figures(self) -> Sequence[LogFigures]:
        return self._figures

    def inspect(self) -> str:
        return str(self._ask({"call": "inspect"})["text"])

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            child.end(END_S)

    def _start(self) -> None:
        self._child = Child("kafka_process", os.environ)
        try:
            self._ask(self._job)
        except BaseException:  # of an interrupt too: a process that was not told what to read is of no use
            self.close()
            raise

    def _ask(self, question: Mapping[str, Any], known: Collection[str] = ()) -> dict[str, Any]:
        """Return the answer to a question; raises the error that it is."""
        if self._child is None:
            self._start()
        child = self._child
        assert child is not None
        guard = threading.Timer(HANG_S, child.kill)
        guard.daemon = True
        guard.start()
        try:
            child.pipe.send_json(question)
            while (message := child.pipe.receive(MAX_ANSWER_BYTES)).kind == READ:
                child.pipe.send_json({"known": [str(stamp) for stamp in stamps_of(known, self._topics)]})
        except (BadMessage, BrokenPipeError, ValueError) as error:  # the last of a pipe that was closed
            self.close()
            raise TransientReadError(
                f"kafka {self._options.servers}: the process that reads ended with {how_it_ended(child.end(END_S))} "
                "and is started again; nothing is lost. Its client does so where a topic is deleted and made anew"
            ) from error
        finally:
            guard.cancel()
        answer: dict[str, Any] = json.loads(message.data or b"{}")
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["text"])
        return answer


# -- the process --------------------------------------------------------------------------------------------------


def _known(pipe: Pipe) -> Iterator[str]:
    """Yield stamps that the ledger has, fetched from the parent once they are wanted, which is rarely."""
    pipe.send(READ, {})
    yield from (pipe.receive_json() or {"known": ()})["known"]


def main() -> None:
    """Serve until the parent is gone."""
    pipe = take_pipe()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent ends it
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with contextlib.ExitStack() as stack:
        source: Any = None
        while (question := pipe.receive_json()) is not None:
            try:
                if source is None:
                    source = _made(question)
                    stack.callback(source.close)
                    answer: dict[str, Any] = {}
                else:
                    answer = _answer(source, question, pipe)
            except tuple(_ERRORS.values()) as error:
                name = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS)
                answer = {"error": name, "text": str(error)}
            except Exception as error:  # raised again in the parent, which logs it and asks again
                answer = {"error": TransientReadError.__name__, "text": f"{type(error).__name__}: {error}"}
            pipe.send(END, {}, json.dumps(answer).encode())


def _made(job: Mapping[str, Any]) -> Any:
    from stream_odml.ingest.kafka_source import KafkaSource

    options = KafkaOptions(**job["options"])
    return KafkaSource(job["topics"], options, Spool(job["place"], job["storage"]))


def _answer(source: Any, question: Mapping[str, Any], pipe: Pipe) -> dict[str, Any]:
    if question["call"] == "poll":
        return {"refs": [ref.to_dict() for ref in source.poll(_known(pipe))]}
    if question["call"] == "inspect":
        return {"text": source.inspect()}
    missing = frozenset(question["missing"])
    source.settle(question["waiting"], lambda shard_id: shard_id not in missing)
    return {"figures": [asdict(figures) for figures in source.figures()]}


if __name__ == "__main__":
    main()
