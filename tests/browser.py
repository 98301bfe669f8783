"""A real browser for tests, driven through its own protocol; see `open_page`."""

import contextlib
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-extensions",
)  # fmt: skip
PATIENCE = 120  # seconds for an answer; a loaded machine is slow


class Page:
    """A page in the browser.

    Attributes:
        complaints: errors that the page logged or threw.
        requests: addresses that it asked for, but for itself and what lies in it.
    """

    def __init__(self, socket):
        self._socket, self._number = socket, 0
        self.complaints, self.requests = [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **given) -> dict:
        """Calls a method of the protocol and waits for its answer."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": given}))
        while (message := self._next()).get("id") != self._number:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def _next(self) -> dict:
        message = json.loads(self._socket.recv())
        method, given = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(given["exceptionDetails"]))
        if method == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.complaints.append(given["entry"]["text"])
        if method == "Network.requestWillBeSent" and not given["request"]["url"].startswith(
            ("data:", "file:")
        ):
            self.requests.append(given["request"]["url"])
        return message

    def open(self, address: str) -> None:
        """Loads an address and waits until it is there."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=address)
        while self.evaluate("document.readyState + location.protocol") != "completefile:":
            pass

    def evaluate(self, code: str):
        """The value of an expression."""
        found = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """What stands in the first element."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def press(self, key: str) -> None:
        """Presses a key."""
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.send("Input.insertText", text=text)

    def prefer(self, scheme: str) -> None:
        """Asks pages for a `light` or a `dark` scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def resize(self, width: int, height: int = 900) -> None:
        """Gives the window a size, pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )


def serious_faults(page: Page) -> list[str]:
    """What axe-core calls serious or critical on a page: rule and place."""
    page.evaluate(
        (Path(find_spec("axe_core_python").origin).parent / "axe.min.js").read_text(encoding="utf-8")
    )
    found = page.evaluate("axe.run().then(found => found.violations)")
    return [
        f"{fault['id']}: {node['html'][:200]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@contextlib.contextmanager
def open_page(profile: Path, address: str) -> Iterator[Page]:
    """A page of a fresh browser.

    Args:
        profile: an empty folder of the browser.
        address: what it shows.
    """
    from websocket import create_connection

    command = [BROWSER, *FLAGS, "--remote-debugging-port=0", "--remote-allow-origins=*"]
    command += [f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in browser.stderr:  # ends with the browser
            if line.startswith("DevTools listening on ws://"):
                port = line.split(":")[2].split("/")[0]
                break
        else:
            raise RuntimeError("the browser ended before it could be driven")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
            pages = [target for target in json.load(answer) if target["type"] == "page"]
        socket = create_connection(pages[0]["webSocketDebuggerUrl"], timeout=PATIENCE)
        page = Page(socket)
        page.open(address)
        yield page
        socket.close()
    finally:
        browser.kill()
        browser.wait()
        browser.stderr.close()
