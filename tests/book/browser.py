"""A headless Chromium for the page tests, spoken to over its DevTools socket; it reaches no other machine."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason=f"no Chromium on the PATH (looked for {', '.join(NAMES)})"
)


AXE = Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"  # `make test` puts it there
needs_axe = pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: `make test` installs it where there is npm")


GONE = ("Inspected target navigated or closed", "Cannot find context", "Execution context was destroyed")


class Navigated(Exception):
    """The document that was asked went away, because the page went on to another one."""


class Browser:
    """One tab. `errors` and `requests` gather what the page said and what it fetched since `open`.

    Args:
        local: Let it reach this machine's own servers, and nothing else.
    """

    def __init__(self, *, local: bool = False) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="brainfm-chromium-", ignore_cleanup_errors=True)
        command = [
            str(find_chromium()),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND" + (", EXCLUDE 127.0.0.1" if local else ""),
            "--remote-debugging-port=0",
            "--remote-allow-origins=*",
            f"--user-data-dir={self._folder.name}",
            "about:blank",
        ]
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
        assert self._process.stderr is not None
        address = next(line.split(" on ")[1].strip() for line in self._process.stderr if "DevTools listening" in line)
        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._next, self._session = 0, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=20)
        self._folder.cleanup()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a DevTools method; events that come in meanwhile are noted."""
        self._next += 1
        message: dict[str, Any] = {"id": self._next, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._next:
                if any(reason in str(answer.get("error")) for reason in GONE):
                    raise Navigated(answer)
                assert "error" not in answer, answer
                return answer.get("result", {})
            self._note(answer)

    def open(self, page: Path, *, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Load a page and wait until it is at rest: loaded, maths typeset, icons drawn by their script."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.visit(page.resolve().as_uri())
        self.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => true) : true")
        drawn = "document.documentElement.classList.contains('fontawesome-i2svg-complete')"
        self.wait_for(f"!window.FontAwesome || {drawn}")

    def visit(self, address: str) -> None:
        """Load an address and wait until its document is complete; of a page that only points on, the page it means."""
        self.errors, self.requests = [], []
        self.send("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && !document.querySelector('meta[http-equiv=refresh i]')")

    def wait_for(self, condition: str, seconds: float = 20) -> None:
        """Ask until it holds; a document that goes away under the question is asked again, as the next one."""
        end = time.monotonic() + seconds
        while True:
            try:
                if self.evaluate(condition):
                    return
            except Navigated:
                pass
            assert time.monotonic() < end, f"never became true: {condition}"
            time.sleep(0.1)

    def evaluate(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """Press and release the left button at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press and release a key that has no character."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("keyDown", "keyUp"):
            code = codes[key]
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def barriers(self) -> list[str]:
        """What axe-core finds on the page that keeps people out, if serious: rule, and the first place of each."""
        self.evaluate("Promise.all(document.getAnimations().map(a => a.finished)).then(() => true)")
        self.evaluate(f"{AXE.read_text(encoding='utf-8')};true")
        serious = "r.violations.filter(v => ['serious', 'critical'].includes(v.impact))"
        said = f"{serious}.map(v => `${{v.id}}, ${{v.nodes.length}} times: ${{v.nodes[0].html.slice(0, 200)}}`)"
        return self.evaluate(f"axe.run(document, {{resultTypes: ['violations'], iframes: false}}).then(r => {said})")

    def screenshot(self, target: Path, *, whole: bool = False) -> None:
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        target.write_bytes(base64.b64decode(data))

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
