"""Headless Chromium over the DevTools protocol: a page to click, type and look at."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# Long: the first answer of a model is compiled, and a machine may be busy.
SECONDS = 180
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}
# Where a mouse clicks the last element that a selector finds, once it is at rest: in the same place in two frames, enabled, and hit
# there by a mouse. Until then, what is in the way.
CLICK_POINT = """(async () => {
  const nodes = document.querySelectorAll(%s), node = nodes[nodes.length - 1];
  if (!node) return "no such element";
  const frame = () => new Promise(requestAnimationFrame);
  node.scrollIntoView({ block: "nearest", behavior: "instant" });
  await frame();
  const before = node.getBoundingClientRect();
  await frame();
  const box = node.getBoundingClientRect();
  if (["x", "y", "width", "height"].some((side) => box[side] !== before[side])) return "it moves";
  if (node.matches(":disabled")) return "it is disabled";
  const point = { x: box.x + box.width / 2, y: box.y + box.height / 2 };
  const hit = document.elementFromPoint(point.x, point.y);
  return node.contains(hit) ? point : `the mouse hits ${hit?.outerHTML.slice(0, 200)}`;
})()"""


class Page:
    """A tab. ``errors`` collects what its console reported as an error and its uncaught exceptions, ``requested`` each URL it loaded."""

    def __init__(self, address: str) -> None:
        # A page that computes for long answers no ping.
        self._socket = connect(address, max_size=None, open_timeout=SECONDS, ping_interval=None)
        self._ids = itertools.count()
        self.errors: list[str] = []
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        """The result of a command of the protocol."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(SECONDS))
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        entry = message.get("params", {}).get("entry", {})
        if message.get("method") == "Log.entryAdded" and entry["level"] == "error":
            self.errors.append(f"{entry['text']} {entry.get('url', '')}")
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(message["params"]["request"]["url"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(message["params"]["exceptionDetails"])[:2000])

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True)  # fmt: skip
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = SECONDS) -> Any:
        """Waits until a JavaScript expression is true; returns its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(
                f"(() => {{ try {{ const value = {condition}; return value instanceof Node || value; }} catch {{ return null; }} }})()"
            ):
                return value
            time.sleep(0.03)
        raise AssertionError(
            f"not true after {seconds} s: {condition}; on the page: {self.run('document.body.innerText')[:2000]}"
        )

    def text(self, selector: str) -> str:
        return self.run(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.innerText).join('\\n')"
        )

    def click(self, selector: str) -> None:
        """Clicks the last element that the selector finds, as a mouse does, as soon as it is at rest and nothing covers it."""
        end = time.monotonic() + SECONDS
        while isinstance(point := self.run(CLICK_POINT % json.dumps(selector)), str):
            assert time.monotonic() < end, f"{selector} cannot be clicked: {point}"
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field, as a person who types."""
        self.wait(f"window.field = [...document.querySelectorAll({json.dumps(selector)})].at(-1)")
        self.run("field.focus(), field.select()")
        self.send("Input.insertText", text=text)
        assert self.run("field.isConnected && field.value") == text, f"{selector} lost the focus or was replaced"

    def press(self, key: str, modifiers: int = 0) -> None:
        common = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def attach(self, selector: str, files: Sequence[Path]) -> None:
        """Chooses files in a field for files."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def emulate(self, width: int, height: int, scheme: str = "light", scale: float = 1) -> None:
        """A window of this size, on a system of this color scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self) -> bytes:
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A tab of a headless Chromium whose profile is in ``folder``; its microphone is a test tone."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-first-run", "--disable-gpu",
        "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required", "about:blank",
    ]  # fmt: skip
    # Chromium refuses its sandbox to root.
    if os.geteuid() == 0:
        command.insert(1, "--no-sandbox")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(folder / "DevToolsActivePort", process)
        yield Page(_first_tab(port))
    finally:
        process.terminate()
        process.wait(SECONDS)


def _first_tab(port: int) -> str:
    """The address for commands to the first tab."""
    for _ in range(10 * SECONDS):
        for tab in httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=SECONDS).json():
            if tab["type"] == "page":
                return tab["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise AssertionError("Chromium opened no tab")


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    """The port that Chromium chose."""
    for _ in range(10 * SECONDS):
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        assert process.poll() is None, "Chromium ended"
        time.sleep(0.05)
    raise AssertionError("Chromium did not open its DevTools port")
