"""`docs/howto/python.md`, executed as it stands, on a root at rest and against a service; both say the same."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import stream_odml as so
from stream_odml.client import Client
from stream_odml.config.service import ServiceOptions
from stream_odml.ingest.landing_folder import land_plan, plan_folder
from stream_odml.notebook import service
from stream_odml.notebook.stream import Stream
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from tests.deploy.paths import REPOSITORY
from tests.service.local import LocalApi
from tests.service.tiny_stream import TinyStream, picture

PAGE = (REPOSITORY / "docs" / "howto" / "python.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
OPTIONS = ServiceOptions(poll_s=60.0)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[TinyStream]:
    stream = TinyStream(tmp_path)
    stream.land("a", ["<b>cat</b>", "dog", "owl"], per_class=2)
    stream.stage()
    yield stream
    stream.close()


@pytest.fixture
def served(tiny: TinyStream, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Stream, Replica]]:
    """The same stream, opened by its address."""
    replica = Replica(tiny.root, OPTIONS)
    replica.start()
    with LocalApi(create_app(replica, OPTIONS, replica.metrics)) as api:

        def send(request: httpx.Request) -> httpx.Response:
            path = request.url.raw_path.decode("ascii")
            answer = api.request(request.method, path, content=request.content, headers=request.headers)
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

        connected = lambda url, token: Client(url, token, transport=httpx.MockTransport(send))  # noqa: E731
        monkeypatch.setattr(service, "Client", connected)
        yield so.open("http://localhost"), replica
    replica.close()


def folder(at: Path) -> Path:
    """A folder of one class with two images."""
    for number in (70, 71):
        path = at / "heron" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return at


def test_a_root_and_its_service_say_the_same(
    tiny: TinyStream, served: tuple[Stream, Replica], tmp_path: Path
) -> None:
    root, over = so.open(tiny.root), served[0]
    item = "a/3"
    (tmp_path / "leaf.png").write_bytes(tiny.images[item])
    pixels = np.array(Image.open(tmp_path / "leaf.png"))
    for query in (
        tiny.images[item],
        tmp_path / "leaf.png",
        Image.fromarray(pixels),
        pixels,
        tiny.vectors([item])[0],
    ):
        here, there = root.search(query, k=3), over.search(query, k=3)
        assert [hit.item_id for hit in here] == [hit.item_id for hit in there]
        assert (here[0].item_id, here[0].class_name) == (item, "dog")
        assert here[0].score == pytest.approx(1.0, abs=1e-4) == there[0].score
    assert {hit.class_name for hit in root.search(pixels, classes=["owl"])} == {"owl"}
    assert {hit.class_name for hit in over.search(pixels, classes=["owl"])} == {"owl"}
    assert {i.item_id for i in root.items()} == {i.item_id for i in over.items()} == set(tiny.images)
    assert (
        [i.item_id for i in root.items("dog")]
        == ["a/2", "a/3"]
        == sorted(i.item_id for i in over.items("dog"))
    )
    assert root.versions == over.versions
    assert [version.is_head for version in root.versions] == [False, True]
    with pytest.raises(ValueError, match="give the path"):
        root.search(np.zeros((4, 4)))
    with pytest.raises(FileNotFoundError, match="no image"):
        root.search("nothing.png")
    with pytest.raises(ValueError, match="0 pixels shows nothing; give one with pixels"):
        root.search(np.zeros((0, 20, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match="nothing does not exist; name a folder of class folders"):
        root.add("nothing")
    with pytest.raises(TypeError, match="None is no place; give a stream root"):
        so.open(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="version says which model made a vector"):
        root.search(picture(70), version="v0001")


def test_a_rare_class_is_found_among_more_items_than_are_sampled(
    tiny: TinyStream, served: tuple[Stream, Replica]
) -> None:
    tiny.land("b", [f"class {number}" for number in range(9)], per_class=1)
    rare = set(tiny.land("c", ["cafe\u0301"], per_class=5))
    over, replica = served
    replica.puller.poll()
    sample = Client.sample
    sizes: list[int] = []

    def counted(client: Client, limit: int, class_name: str | None) -> Any:
        sizes.append(limit)
        return sample(client, limit, class_name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "sample", counted)
        for stream in (so.open(tiny.root), over):
            assert {item.item_id for item in stream.items("cafe\u0301")} == rare
            found = stream.items("caf\xe9", limit=4)
            assert {item.item_id for item in found} < rare
            assert len(found) == 4
            assert len(stream.items("nobody")) == 0
    assert sizes == [1000, 4, 1000]  # no more than it was asked for is sent
    with pytest.raises(ValueError, match="open the stream root"):
        over.items(limit=20_001)


def test_what_a_notebook_shows_has_pictures_and_no_markup_of_the_data(
    tiny: TinyStream, served: tuple[Stream, Replica]
) -> None:
    for stream in (so.open(tiny.root), served[0]):
        html = stream.search(tiny.images["a/0"], k=2)._repr_html_()
        assert html.count("data:image/") == 3
        assert "<b>cat</b>" not in html
        assert "&lt;b&gt;cat&lt;/b&gt;" in html
        assert tiny.head in stream._repr_html_()
        assert f"{tiny.head} (head)" in stream.versions._repr_html_()
        assert "6 items" in repr(stream.items())


def test_what_is_added_is_found_once(
    tiny: TinyStream, served: tuple[Stream, Replica], tmp_path: Path
) -> None:
    """Twice to the root and twice through the service: one shard of each."""
    root, (over, replica) = so.open(tiny.root), served
    photos = folder(tmp_path / "photos")
    assert len(root.add(photos)) == 1
    assert root.add(photos) == []
    assert over.add(photos) == over.add(photos)
    tiny.ingest()
    replica.puller.poll()
    assert root.search(picture(70), k=1)[0].class_name == "heron"
    assert len(over.items("heron")) == 4
    with pytest.raises(ValueError, match="class folders"):
        over.add(photos / "heron" / "70.png")


def test_what_landed_otherwise_is_not_added_again_through_the_service(
    tiny: TinyStream, served: tuple[Stream, Replica], tmp_path: Path
) -> None:
    """Under the name of the folder, whether `ingest` landed it or the root did; ids of its own are kept."""
    over, replica = served
    photos, more = folder(tmp_path / "my photos"), folder(tmp_path / "more")
    (more / "metadata.csv").write_text("file_name,item_id\nheron/70.png,h70\nheron/71.png,h71\n")
    assert land_plan(str(tiny.inbox), plan_folder(tiny.inbox, photos))
    tiny.ingest()
    replica.puller.poll()
    assert over.add(photos) == []
    assert len(over.add(photos, "others")) == 1
    pushed = over.add(more)
    tiny.ingest()
    replica.puller.poll()
    assert {"h70", "h71"} <= {item.item_id for item in over.items("heron")}
    assert over.add(more) == pushed
    assert len(over.items("heron")) == 6


def test_the_page_runs_as_written(tiny: TinyStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stream-root").symlink_to(tiny.root)
    folder(Path("photos"))
    Path("leaf.jpg").write_bytes(tiny.images["a/5"])
    scope: dict[str, Any] = {}
    exec(compile(EXAMPLE, "python.md", "exec"), scope)
    assert scope["hits"][0].item_id == "a/5"
    assert pq.read_table("out/items.parquet").num_rows == 6


def test_the_package_itself_loads_nothing_heavy() -> None:
    code = "import sys, stream_odml; print([m for m in ('torch', 'ray', 'pyarrow', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert run.stdout.strip() == "[]"
