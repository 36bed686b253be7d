"""The page and its offline API list: self-contained, whole, and alive in a real browser where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from stream_odml.cluster.runtime import free_port
from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from stream_odml.service.backend import RefusedRow, VersionHistory
from stream_odml.service.routes.pages import FOLDER
from tests.service.browser import Browser
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def api() -> Iterator[LocalApi]:
    with LocalApi(create_app(FakeBackend(), ServiceOptions())) as api:
        yield api


def texts() -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_a_page_and_all_that_it_names_are_served_from_here(api: LocalApi, page: str) -> None:
    html = api.get(page)
    assert html.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in html.headers["content-security-policy"]
    waiting = set(re.findall(r'(?:href|src)="(/page/[^"]+)"', html.text))
    assert waiting
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        answer = api.get(name)
        assert answer.status_code == 200, name
        seen.add(name)
        imported = {f"/page/{other}" for other in re.findall(r'from "\./([a-z]+\.js)"', answer.text)}
        waiting |= imported - seen
    assert any(name.endswith(".js") for name in seen)


def test_no_file_asks_another_host_for_anything() -> None:
    for name, text in texts().items():
        hosts = set(re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]{2,}", text)) - {"http://www.w3.org"}
        assert not hosts, (name, hosts)


def test_every_element_that_a_script_looks_for_is_in_the_page() -> None:
    files = texts()
    ids = set(re.findall(r'\bid="([^"]+)"', files["index.html"] + files["docs.html"]))
    for name, text in files.items():
        assert set(re.findall(r'\$\("([\w-]+)"\)', text)) <= ids, name


def test_there_is_no_inline_script_or_style_for_the_policy_to_block() -> None:
    for name, text in texts().items():
        if name.endswith(".html"):
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text), name


def test_an_unchanged_file_is_not_sent_again_and_the_whole_is_small(api: LocalApi) -> None:
    first = api.get("/page/style.css")
    again = api.get("/page/style.css", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    # A map with colours, a lasso and what waits in place of dots alone, then its layout by neighbours, made of 62 kB
    # what it is.
    assert sum(len(text.encode()) for text in texts().values()) < 90_000


@contextlib.contextmanager
def serving(options: ServiceOptions, backend: FakeBackend | None = None) -> Iterator[str]:
    """The address of a service."""
    port = free_port()
    app = create_app(backend or FakeBackend(), options)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=600)


@pytest.fixture
def address() -> Iterator[str]:
    with serving(ServiceOptions()) as address:
        yield address


@pytest.mark.skipif(CHROMIUM is None, reason="NOT CHECKED: no Chromium on this machine")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", ["5 classes", "v0001-bb", "4 new of 5 classes", ">Serve<", "20 items", "re-extracted|served"]),
        ("/docs", ["/v1/versions/{a}/diff/{b}", "Nearest items", "Say the class of an item", "curl"]),
    ],
)
def test_a_real_browser_draws_it(address: str, tmp_path: Path, path: str, expected: list[str]) -> None:
    assert CHROMIUM is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    flags += " --disable-component-update --disable-sync --virtual-time-budget=4000 --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path}", f"{address}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    for pattern in expected:
        assert re.search(pattern if "|" in pattern else re.escape(pattern), done.stdout), pattern


TRY = """(async () => {
  const until = async (what) => { for (let i = 0; i < 400; i++) { const found = what(); if (found) return found;
    await new Promise((go) => setTimeout(go, 25)); } throw new Error(`waited for ${what}`); };
  const summary = await until(() => [...document.querySelectorAll("summary")].find(
    (one) => one.textContent.startsWith("POST/v1/search") && !one.textContent.includes("batch")));
  const form = summary.parentElement;
  form.open = true;
  form.querySelector("textarea").value = BODY;
  form.querySelector(".try button").click();
  if (TOKEN) {
    await until(() => document.getElementById("token-dialog").open);
    document.getElementById("token").value = TOKEN;
    document.getElementById("token-dialog").close();
  }
  return (await until(() => form.querySelector("output pre"))).parentElement.innerText;
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="NOT CHECKED: no Chromium on this machine")
@pytest.mark.parametrize("token", ["", "secret"])
def test_a_request_is_tried_from_its_description_with_the_token(tmp_path: Path, token: str) -> None:
    assert CHROMIUM is not None
    (tmp_path / "token").write_text(token)
    options = ServiceOptions(token_file=tmp_path / "token" if token else None)
    body = json.dumps({"vector": FakeBackend().vectors[6].tolist(), "k": 1})
    script = TRY.replace("BODY", json.dumps(body)).replace("TOKEN", json.dumps(token))

    async def tried(address: str) -> str:
        async with Browser(CHROMIUM or "", tmp_path / "profile", f"{address}/docs") as browser:
            return str(await browser.run(script))

    with serving(options) as address:
        answer = asyncio.run(tried(address))
    assert answer.startswith("200")
    assert "shard-1/6" in answer


ABOUT = """(async () => {
  const until = async (what) => { for (let i = 0; i < 800; i++) { const found = what(); if (found) return found;
    await new Promise((go) => setTimeout(go, 25)); } throw new Error(`waited for ${what}`); };
  const at = (id) => document.getElementById(id);
  (await until(() => document.querySelector("#classes .more"))).click();
  await until(() => at("item-facts").children.length);
  const said = [at("item-facts").innerText];
  const words = async (act) => { const before = at("item-said").textContent; act();
    said.push(await until(() => at("item-said").textContent !== before && at("item-said").textContent)); };
  await words(() => at("item-erase").click());
  said.push(at("item-erase").textContent);
  await words(() => at("item-erase").click());
  at("item-class").value = "renamed";
  await words(() => at("item-label").click());
  return said.join("\\n");
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="NOT CHECKED: no Chromium on this machine")
def test_an_item_is_described_erased_after_a_second_click_and_given_a_class(tmp_path: Path) -> None:
    async def seen(address: str) -> str:
        async with Browser(CHROMIUM or "", tmp_path / "profile", f"{address}/") as browser:
            return str(await browser.run(ABOUT))

    with serving(ServiceOptions()) as address:
        said = asyncio.run(seen(address))
    assert "shard-1, row" in said
    assert "this cannot be undone" in said
    assert "Yes, erase it for good" in said
    assert "hidden now" in said
    assert "it is renamed within seconds" in said


MAP = """(async () => {
  const until = async (what) => { for (let i = 0; i < 800; i++) { const found = what(); if (found) return found;
    await new Promise((go) => setTimeout(go, 25)); } throw new Error(`waited for ${what}`); };
  const at = (id) => document.getElementById(id);
  const map = await until(() => at("map"));
  const said = {};
  await until(() => map.getAttribute("aria-label").startsWith("Map of 20 items of 5 classes"));
  const colour = async (by, words) => {
    at("map-colour").value = by;
    at("map-colour").dispatchEvent(new Event("change"));
    await until(() => at("map-legend").innerText.includes(words));
  };
  await colour("error", "of another class 15.0 %");
  await colour("=side", "left");
  await colour("class", "");
  await until(() => at("map-legend").innerText.trim() === "neighbour");
  map.setPointerCapture = () => {};
  const box = map.getBoundingClientRect();
  const fire = (kind, x, y, more = {}) => map.dispatchEvent(new PointerEvent(kind, { clientX: box.left + box.width * x,
    clientY: box.top + box.height * y, bubbles: true, ...more }));
  const corners = [[0, 0], [1, 0], [1, 1], [0, 1]];
  at("map-lasso").click();
  fire("pointerdown", 0, 0);
  corners.forEach(([x, y]) => fire("pointermove", x, y, { buttons: 1 }));
  fire("pointerup", 0, 1);
  said.all = at("picked-title").textContent;
  said.tiles = document.querySelectorAll("#picked-items li").length;
  at("picked-close").click();
  map.focus();
  const key = (name) => map.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
  key("ArrowRight"); key("ArrowRight");
  said.tip = at("map-tip").textContent;
  key(" ");
  said.class = at("picked-title").textContent;
  map.focus();
  key("ArrowLeft"); key("Enter");
  await until(() => at("item").open && at("item-facts").children.length);
  said.item = at("item-title").textContent;
  at("item").close();
  await until(() => at("queue").children.length);
  at("refused-rows").open = true;
  await until(() => at("refused").rows.length);
  said.work = at("work-section").innerText;
  said.markup = at("refused").querySelector("img") !== null;
  const again = [...document.querySelectorAll("#not-learnt button")][0];
  again.click();
  await until(() => at("not-learnt").innerText.includes("it is learnt again"));
  const controls = [...document.querySelectorAll("button, select, input, a, canvas")];
  said.beyond = controls.filter((one) => one.offsetParent && one.tabIndex < 0).map((one) => one.id);
  return said;
})()"""


MARKUP = "<img src=x onerror=alert(1)>.jpg: starts with b'<'"


class Busy(FakeBackend):
    """A stream with something waiting, refused and quarantined."""

    async def versions(self) -> VersionHistory:
        task = {
            "task": "task-0002",
            "state": "skipped",
            "reason": "Recall@1 fell",
            "in_words": "task-0002 was not learnt",
        }
        return replace(await super().versions(), not_learnt=[task])

    async def status(self) -> Mapping[str, Any]:
        driver = {
            "stage": {"phase": "idle"},
            "queue_shards": {"index": 0, "boundary": 3},
            "queue_age_s": {"boundary": 70.0},
            "open_task": ["2 of 4 new classes have come"],
        }
        return {**await super().status(), "driver": driver, "quarantined": {"not_an_image": 2}}

    def refused_rows(self, limit: int) -> Sequence[RefusedRow]:
        return [RefusedRow("shard-2", 7, "not_an_image", MARKUP, "leave it out", None)]


@pytest.mark.skipif(CHROMIUM is None, reason="NOT CHECKED: no Chromium on this machine")
def test_the_map_is_coloured_circled_and_walked_and_what_waits_is_said(tmp_path: Path) -> None:
    async def seen(address: str) -> tuple[Any, list[str]]:
        async with Browser(CHROMIUM or "", tmp_path / "profile", f"{address}/") as browser:
            return await browser.run(MAP), browser.problems

    backend = Busy()
    with serving(ServiceOptions(), backend) as address:
        said, problems = asyncio.run(seen(address))
    assert (said["all"], said["tiles"]) == ("20 items of 5 classes", 20)
    assert (said["tip"], said["class"], said["item"]) == ("c1", "4 items of 1 class", "c4")
    for words in ("3 shards for their task to close, the oldest for 70 s", "2 of 4 new classes", "2 rows: not an image",
                  "task-0002 was not learnt", MARKUP, "leave it out", "the newest 1 of 2"):  # fmt: skip
        assert words in said["work"]
    assert not said["markup"]
    assert ("relearn", "task-0002", "False") in backend.asked
    assert said["beyond"] == []
    # The fake's pictures are none, and an item without one shows a letter.
    assert [problem for problem in problems if "thumbnail" not in problem] == []


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_stands_out_from_every_ground(theme: int) -> None:
    colours = dict(
        re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{.*?\}", texts()["style.css"], re.DOTALL)[theme])
    )
    for text in ("ink", "soft", "new", "known", "good", "bad"):
        for ground in ("paper", "raised", "wash"):
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


AXE = Path(os.environ.get("STREAM_ODML_AXE", "nowhere"))


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None or not AXE.exists(),
    reason="NOT CHECKED: npm install axe-core, then name axe.min.js in STREAM_ODML_AXE",
)
def test_axe_finds_nothing_at_any_size_in_either_theme(tmp_path: Path) -> None:
    async def seen(address: str) -> dict[str, Any]:
        found = {}
        async with Browser(CHROMIUM or "", tmp_path / "profile", f"{address}/") as browser:
            ready = "new Promise((go) => setInterval(() => document.querySelector('#versions tr') && go(true), 50))"
            await browser.run(ready)
            opened = (
                "document.querySelector('#refused-rows').open = true;"
                "new Promise((go) => setInterval(() => document.querySelector('#refused tr') && go(true), 50))"
            )
            await browser.run(opened)
            await browser.run(AXE.read_text("utf-8") + ";true")
            for width, height, theme in (
                (1440, 900, "light"),
                (820, 1180, "dark"),
                (390, 844, "light"),
                (390, 844, "dark"),
            ):
                await browser.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                                   deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
                await browser.send(
                    "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}]
                )
                rules = "(one) => one.id + ': ' + one.nodes[0].html"
                said = await browser.run(f"axe.run(document).then((all) => all.violations.map({rules}))")
                wide = await browser.run("document.documentElement.scrollWidth > innerWidth")
                found[f"{width} {theme}"] = (said, wide)
        return found

    with serving(ServiceOptions(), Busy()) as address:
        assert {key: value for key, value in asyncio.run(seen(address)).items() if value != ([], False)} == {}
