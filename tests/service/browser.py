"""A headless Chromium that a test steers over its DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-port=0"
)


class Browser:
    """One page, opened at `address`; `run` evaluates JavaScript in it and waits for promises."""

    def __init__(self, chromium: str, folder: Path, address: str) -> None:
        self._folder, self._numbers = folder, iter(range(1, 1_000_000))
        self.problems: list[str] = []
        """What the page told of errors by then."""
        command = [chromium, *FLAGS.split(), f"--user-data-dir={folder}", address]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession()
        reported, until = self._folder / "DevToolsActivePort", time.monotonic() + 40
        while not reported.exists() or not reported.read_text():
            assert time.monotonic() < until, "the browser did not start"
            time.sleep(0.05)
        port = reported.read_text().split()[0]
        async with self._http.get(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(one for one in await answer.json() if one["type"] == "page")
        self._socket = await self._http.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Runtime", "Log"):  # what was said before is told too
            await self.send(f"{domain}.enable")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._http.close()
        self._process.terminate()
        self._process.wait(20)

    async def run(self, script: str, wait_s: float = 120) -> Any:
        """Return the value of an expression, awaited. AssertionError where it throws."""
        answer: Any = None
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:  # until the page is there: what runs in the one before it is lost
            answer = await self.send(
                "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
            )
            if "result" in answer:
                assert "exceptionDetails" not in answer["result"], answer
                return answer["result"]["result"].get("value")
            await asyncio.sleep(0.1)
        raise AssertionError(answer)

    async def send(self, method: str, **parameters: Any) -> Any:
        """Return the answer to a command of the protocol, with its result or its error."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = json.loads((await self._socket.receive(timeout=200)).data)
            if answer.get("id") == number:
                return answer
            reported = answer.get("params", {})
            level = reported.get("entry", {}).get("level") or reported.get("type")
            if answer.get("method") == "Runtime.exceptionThrown" or level in ("error", "assert"):
                self.problems.append(json.dumps(reported))
