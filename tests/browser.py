"""A headless Chromium, told what to do over two pipes (its DevTools protocol), for pages that are opened from disk."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners import CHROMIUM

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip

LOADED = "new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))"


@dataclass
class Browser:
    """One tab. `requests` are the URLs that pages asked for, `complaints` what their consoles say."""

    write: int
    read: int
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _number: int = 0
    _session: str | None = None
    _rest: bytes = b""

    def call(self, method: str, **params: Any) -> Any:
        """The answer of a DevTools command; events that come before it are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            part = os.read(self.read, 2**16)
            assert part, "the browser has gone"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Any) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"]))

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, file: Path, width: int, dark: bool = False) -> None:
        """Load a file in a window of so many pixels, and wait until it is complete. The page begins without a past."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call("Page.navigate", url="about:blank")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=file.absolute().as_uri())
        self.run(LOADED)

    def run(self, script: str) -> Any:
        """The value of a script, or of what it promises."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def tap(self, x: float, y: float) -> None:
        """A finger touches the window and leaves it."""
        self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.call("Emulation.setTouchEmulationEnabled", enabled=False)


def _pipe() -> list[int]:
    """Both ends, numbered from 10 on: none is in the way of the numbers that Chromium wants."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser that is closed in the end; its settings go to `profile`."""
    assert CHROMIUM is not None
    to_browser, from_us = _pipe()
    from_browser, to_us = _pipe()

    def pipes() -> None:  # Chromium reads file 3 and writes file 4
        os.dup2(to_browser, 3)
        os.dup2(to_us, 4)

    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
    with (profile.parent / "chromium.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, preexec_fn=pipes, pass_fds=(3, 4), close_fds=True)
    os.close(to_browser)
    os.close(to_us)
    try:
        tab = Browser(from_us, from_browser)
        tab.attach()
        yield tab
    finally:
        process.kill()
        process.wait()
        os.close(from_us)
        os.close(from_browser)
