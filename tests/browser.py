"""Pages of the project in headless Chromium, by its DevTools protocol over two pipes: no package is needed for it."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
MISSING = "no Chromium on this machine: `apt-get install chromium` brings it"
PATIENCE = 60
"""Seconds for one answer: a busy machine starts a browser slowly."""
_PIPES = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
"""Chromium reads commands from descriptor 3 and answers on 4."""


def find_browser():
    """The path of a Chromium on this machine, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A running Chromium with a profile of its own; use it in `with`, which ends it."""

    def __init__(self, program, profile):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        options = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
        )
        start = [sys.executable, "-S", "-c", _PIPES, str(commands), str(answers), program, *options]
        self._process = subprocess.Popen(
            start, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._unread, self._number = b"", 0
        self.events = []
        """What Chromium told unasked, `{"method", "params", "sessionId"}`."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.ask("Browser.close")
            self._process.wait(PATIENCE)
        finally:  # one that hangs is not left behind
            self._process.kill()
            self._process.wait()
            os.close(self._commands)
            os.close(self._answers)

    def open(self, path, width, height=900):
        """Load a file of this machine in a new tab of some width in CSS pixels."""
        return Page(self, path, width, height)

    def ask(self, method, session=None, **params):
        """Send a command and return its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        answer = self._wait(lambda message: message.get("id") == self._number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def wait_for(self, method, session):
        """Wait until a tab tells of an event."""
        if not any((event["method"], event.get("sessionId")) == (method, session) for event in self.events):
            self._wait(lambda message: (message.get("method"), message.get("sessionId")) == (method, session))

    def _wait(self, is_it):
        """Read until the message that is meant; events on the way are kept."""
        end = time.monotonic() + PATIENCE
        while True:
            message = self._read(end)
            if "method" in message:
                self.events.append(message)
            if is_it(message):
                return message

    def _read(self, end):
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0, end - time.monotonic()))
            assert ready, f"Chromium did not answer within {PATIENCE} s"
            received = os.read(self._answers, 1 << 20)
            assert received, f"Chromium ended with exit code {self._process.wait(PATIENCE)}"
            self._unread += received
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


class Page:
    """A loaded page."""

    def __init__(self, browser, path, width, height):
        self._browser, self._width = browser, width
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.address = Path(path).absolute().as_uri()
        self._ask("Page.navigate", url=self.address)
        browser.wait_for("Page.loadEventFired", self._session)

    def evaluate(self, expression):
        """The value of a JavaScript expression, as JSON can carry it; a promise's when it is kept."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def complaints(self):
        """Errors and warnings of the console and of the browser, and exceptions that nobody caught."""
        self.evaluate("new Promise(done => setTimeout(done, 100))")  # what scripts do after loading
        found = [str(event["params"]["exceptionDetails"]) for event in self._events("Runtime.exceptionThrown")]
        for event in self._events("Log.entryAdded"):
            if event["params"]["entry"]["level"] in ("warning", "error"):
                found.append(event["params"]["entry"]["text"])
        for event in self._events("Runtime.consoleAPICalled"):
            if event["params"]["type"] in ("warning", "error", "assert"):
                found.append(str(event["params"]["args"]))
        return found

    def requests(self):
        """Addresses that the page asked for, but for itself and what it holds itself (`data:`)."""
        asked = [event["params"]["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith("data:") and url.partition("#")[0] != self.address]

    def overflow(self):
        """CSS pixels by which the page is wider than its window."""
        return self.evaluate("document.documentElement.scrollWidth") - self._width

    def screenshot(self, path):
        """Write a PNG of the whole page."""
        answer = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(answer["data"]))

    def print(self, path):
        """Write the page as a printer gets it, a PDF on A4."""
        answer = self._ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        Path(path).write_bytes(base64.b64decode(answer["data"]))

    def _ask(self, method, **params):
        return self._browser.ask(method, self._session, **params)

    def _events(self, method):
        return [e for e in self._browser.events if (e["method"], e.get("sessionId")) == (method, self._session)]
