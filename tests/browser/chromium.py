"""A Chromium that a test drives, by its debugging protocol over a pair of pipes: nothing else is needed.

`python -m tests.browser.chromium` prints which one it would be, or says that there is none.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from select import select
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PATIENCE_S = 60
"""Longer than any answer takes on a slow machine."""

FLAGS = (
    "--headless=new", "--disable-gpu", "--no-first-run", "--no-default-browser-check", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip


class PageError(Exception):
    """The page threw, or the browser refused."""


def find_browser() -> str:
    """The browser: $RUNNERD_BROWSER, or one on the PATH; "" where there is none."""
    named = os.environ.get("RUNNERD_BROWSER", "")
    return named or next((path for name in NAMES if (path := shutil.which(name))), "")


class Browser:
    """One page in a browser of its own. Use as a context manager."""

    def __init__(self, program: str, profile: Path) -> None:
        self.events: list[dict[str, Any]] = []
        """What the page has reported: requests, messages of the console, exceptions."""
        self._count = 0
        self._data = b""
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The protocol is spoken on descriptors 3 and 4.
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [program, *FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", script, *command], pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._in)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE_S)

    # --- the protocol ------------------------------------------------------------------------------------

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method; what it answers."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._data:
            if not select([self._in], [], [], PATIENCE_S)[0]:
                raise PageError("the browser says nothing")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise PageError("the browser is gone")
            self._data += part
        message, _, self._data = self._data.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    # --- what a person does ------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is there and drawn."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.settle()

    def settle(self) -> None:
        """Wait until two frames have been drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited. Raises PageError for what it throws."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise PageError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def ask(self, function: str, *arguments: object) -> Any:
        """What a function of the page says."""
        return self.run(f"{function}({', '.join(map(json.dumps, arguments))})")

    def size(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """A window of a size, on a system that is light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """`mouseMoved`, `mousePressed`, `mouseReleased` or `mouseWheel`."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)
        self.settle()

    def drag(self, x0: float, y0: float, x1: float, y1: float, *, shift: bool = False) -> None:
        keys = {"modifiers": 8} if shift else {}
        self.mouse("mousePressed", x0, y0, button="left", clickCount=1, **keys)
        for part in (0.3, 0.7, 1):
            x, y = x0 + (x1 - x0) * part, y0 + (y1 - y0) * part
            self.mouse("mouseMoved", x, y, button="left", buttons=1, **keys)
        self.mouse("mouseReleased", x1, y1, button="left", clickCount=1, **keys)
        self.settle()

    def key(self, key: str) -> None:
        """Press a key, by its name or its character."""
        known = {
            "Enter": 13,
            "Escape": 27,
            "Tab": 9,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        code = {"windowsVirtualKeyCode": known[key]} if key in known else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)
        self.settle()

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)
        self.settle()

    def picture(self, path: Path) -> None:
        """What one sees, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


if __name__ == "__main__":
    if not find_browser():
        sys.exit(f"no browser: none of {', '.join(NAMES)} is on the PATH, and RUNNERD_BROWSER names none")
    print(find_browser())
