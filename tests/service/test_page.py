"""The page and its offline API list: self-contained, whole, and alive in a real browser where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from stream_odml.cluster.runtime import free_port
from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
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
    assert sum(len(text.encode()) for text in texts().values()) < 64_000


@contextlib.contextmanager
def serving(options: ServiceOptions) -> Iterator[str]:
    """The address of a service."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(FakeBackend(), options), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def address() -> Iterator[str]:
    with serving(ServiceOptions()) as address:
        yield address


@pytest.mark.skipif(CHROMIUM is None, reason="NOT CHECKED: no Chromium on this machine")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", ["5 classes", "v0001-bb", "4 new of 5 classes", ">Serve<", "20 items", "re-extracted|served"]),
        ("/docs", ["/v1/versions/{a}/diff/{b}", "Nearest items", "curl"]),
    ],
)
def test_a_real_browser_draws_it(address: str, tmp_path: Path, path: str, expected: list[str]) -> None:
    assert CHROMIUM is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    flags += " --disable-component-update --disable-sync --virtual-time-budget=4000 --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path}", f"{address}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
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
def test_an_item_is_told_of_erased_after_a_second_click_and_given_a_class(tmp_path: Path) -> None:
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
