"""Browsers that tests drive: Chromium, Firefox and WebKit, as this machine has them.

Playwright drives the Chromium of any distribution, but only its own Firefox and WebKit. Those of Debian listen to the
W3C's protocols: Firefox to WebDriver BiDi on a WebSocket, WebKit's driver to the older WebDriver over HTTP. What a test
asks of them is little: open a page, run a script in it, set the window's size, take a picture.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from playwright.sync_api import Browser as PlaywrightBrowser
from websockets.sync.client import ClientConnection, connect

import build

from .patience import PATIENCE

T = TypeVar("T")

# No host but this machine: everything else goes to a proxy that does not exist.
FIREFOX_PREFERENCES = {"network.proxy.type": 1, "network.proxy.http": "127.0.0.1", "network.proxy.http_port": 9}
FIREFOX_PREFERENCES |= {"network.proxy.ssl": "127.0.0.1", "network.proxy.ssl_port": 9}


class Driven(ABC):
    """A browser with one page."""

    name: str
    version: str

    @abstractmethod
    def open(self, url: str) -> None:
        """Goes to a page and waits until it is loaded."""

    @abstractmethod
    def resize(self, width: int, height: int) -> None:
        """Gives the page this size, in CSS pixels."""

    @abstractmethod
    def picture(self) -> bytes:
        """What the page shows, as PNG."""

    @abstractmethod
    def _evaluate(self, function: str) -> str:
        """What an async JavaScript function without parameters returns, a string."""

    def run(self, script: str, *arguments: object) -> Any:
        """Runs the body of an async JavaScript function in the page and returns its result.

        Parameters
        ----------
        script
            The function's body. It finds the arguments in the array `given`.
        arguments
            Anything that JSON can say, as can the result.

        Raises
        ------
        ScriptError
            With the JavaScript error's words.
        """
        answer = json.loads(
            self._evaluate(f"""async () => {{
                const given = {json.dumps(arguments)};
                try {{
                    return JSON.stringify({{ result: await (async () => {{ {script} }})() ?? null }});
                }} catch (error) {{
                    return JSON.stringify({{ error: `${{error}}` }});
                }}
            }}""")
        )
        if "error" in answer:
            raise ScriptError(f"{self.name} {self.version}: {answer['error']}")
        return answer["result"]


class ScriptError(Exception):
    """A script failed in a browser, or the browser would not run it."""


class Missing(Exception):
    """A browser is not installed; the message says what to install."""


# ---- Chromium --------------------------------------------------------------------------------------------------------


class Chromium(Driven):
    """The Chromium that Playwright has started."""

    name = "Chromium"

    def __init__(self, browser: PlaywrightBrowser) -> None:
        self.version = browser.version
        self.page = browser.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)

    def open(self, url: str) -> None:
        self.page.goto(url)

    def resize(self, width: int, height: int) -> None:
        self.page.set_viewport_size({"width": width, "height": height})

    def picture(self) -> bytes:
        return self.page.screenshot()

    def _evaluate(self, function: str) -> str:
        return str(self.page.evaluate(function))


@contextmanager
def chromium(browser: PlaywrightBrowser) -> Iterator[Chromium]:
    """A page of a running Chromium."""
    driven = Chromium(browser)
    try:
        yield driven
    finally:
        driven.page.close()


# ---- Firefox ---------------------------------------------------------------------------------------------------------


class Firefox(Driven):
    """Firefox, through WebDriver BiDi (https://w3c.github.io/webdriver-bidi)."""

    name = "Firefox"

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.commands = 0
        self.version = self.command("session.new", capabilities={})["capabilities"]["browserVersion"]
        self.context = self.command("browsingContext.getTree")["contexts"][0]["context"]

    def command(self, method: str, **parameters: object) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self.commands += 1
        self.connection.send(json.dumps({"id": self.commands, "method": method, "params": parameters}))
        while True:
            message: dict[str, Any] = json.loads(self.connection.recv(timeout=PATIENCE))
            if message.get("id") == self.commands:
                break
        if message["type"] == "error":
            raise ScriptError(f"Firefox: {method}: {message['message']}")
        result: dict[str, Any] = message["result"]
        return result

    def open(self, url: str) -> None:
        self.command("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def resize(self, width: int, height: int) -> None:
        self.command("browsingContext.setViewport", context=self.context, viewport={"width": width, "height": height})

    def picture(self) -> bytes:
        return base64.b64decode(self.command("browsingContext.captureScreenshot", context=self.context)["data"])

    def _evaluate(self, function: str) -> str:
        target = {"context": self.context}
        answer = self.command("script.evaluate", expression=f"({function})()", target=target, awaitPromise=True)
        if answer["type"] == "exception":
            raise ScriptError(f"Firefox: {answer['exceptionDetails']['text']}")
        return str(answer["result"]["value"])


@contextmanager
def firefox() -> Iterator[Firefox]:
    """The machine's Firefox, without a window and with a profile of its own."""
    program = build.find_firefox()
    if not program:
        raise Missing(f"Firefox is not installed. {build.install_by_hand(build.FIREFOX_PACKAGES)}")
    with TemporaryDirectory(prefix="firefox-", ignore_cleanup_errors=True) as profile:
        preferences = (
            f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in FIREFOX_PREFERENCES.items()
        )
        Path(profile, "user.js").write_text("\n".join(preferences), encoding="utf-8")
        log = Path(profile, "log.txt")
        command = [program, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port=0"]
        with process(command, log):
            address = wait_for(lambda: re.search(r"BiDi listening on (ws://\S+)\n", log.read_text()), "Firefox", log)[1]
            with connect(f"{address}/session", max_size=None, proxy=None) as connection:
                yield Firefox(connection)


# ---- WebKit ----------------------------------------------------------------------------------------------------------


class WebKit(Driven):
    """WebKitGTK's MiniBrowser, through WebDriver (https://www.w3.org/TR/webdriver2).

    On a full screen the window is all page; its bars would not let it be as narrow as a telephone.
    """

    name = "WebKit"

    def __init__(self, driver: str, program: str) -> None:
        options = {"binary": program, "args": ["--automation", "--full-screen"]}
        wanted = {
            "webkitgtk:browserOptions": options,
            "timeouts": {"script": 1000 * PATIENCE, "pageLoad": 1000 * PATIENCE},
        }
        session = request("POST", f"{driver}/session", {"capabilities": {"alwaysMatch": wanted}})
        self.version = session["capabilities"]["browserVersion"]
        self.session = f"{driver}/session/{session['sessionId']}"

    def open(self, url: str) -> None:
        request("POST", f"{self.session}/url", {"url": url})

    def resize(self, width: int, height: int) -> None:
        request("POST", f"{self.session}/window/rect", {"width": width, "height": height})

    def picture(self) -> bytes:
        return base64.b64decode(request("GET", f"{self.session}/screenshot"))

    def _evaluate(self, function: str) -> str:
        script = f"const [done] = arguments; ({function})().then(done);"
        return str(request("POST", f"{self.session}/execute/async", {"script": script, "args": []}))


def request(method: str, url: str, body: object = None) -> Any:
    """Sends a WebDriver command and returns its result."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    try:
        with urlopen(Request(url, data, headers, method=method), timeout=PATIENCE) as response:
            return json.load(response)["value"]
    except HTTPError as error:
        value = json.load(error)["value"]
        raise ScriptError(f"WebKit: {value['error']}: {value['message']}") from None


@contextmanager
def webkit() -> Iterator[WebKit]:
    """The machine's WebKitGTK, on a display of its own that nobody sees."""
    programs = build.find_webkit()
    if not programs:
        raise Missing(f"WebKit's driver or Xvfb is not installed. {build.install_by_hand(build.WEBKIT_PACKAGES)}")
    driver, browser, xvfb = programs
    with TemporaryDirectory(prefix="webkit-", ignore_cleanup_errors=True) as home:
        display_log, driver_log = Path(home, "display.txt"), Path(home, "driver.txt")
        screen = ["-screen", "0", "1200x900x24", "-nolisten", "tcp"]
        with process([xvfb, "-displayfd", "1", *screen], display_log):
            display = wait_for(lambda: re.search(r"^(\d+)\n", display_log.read_text(), re.M), "Xvfb", display_log)[1]
            variables = {"DISPLAY": f":{display}", "GDK_BACKEND": "x11", "HOME": home, "XDG_CACHE_HOME": home}
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            with process([driver, f"--port={port}"], driver_log, **variables):
                wait_for(lambda: answers(f"{url}/status"), "WebKitWebDriver", driver_log)
                driven = WebKit(url, browser)
                try:
                    yield driven
                finally:
                    request("DELETE", driven.session)


def answers(url: str) -> bool:
    """Whether a driver listens."""
    try:
        request("GET", url)
    except URLError:
        return False
    return True


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


# ---- Processes -------------------------------------------------------------------------------------------------------


@contextmanager
def process(command: list[str], log: Path, **variables: str) -> Iterator[None]:
    """A program that runs meanwhile and writes into `log`; the keywords are environment variables for it."""
    with log.open("w") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **variables})
        try:
            yield
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def wait_for(ask: Callable[[], T | None], what: str, log: Path | None = None) -> T:
    """Asks until there is an answer, with PATIENCE; `log` is what a program has said meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.02)
    said = f":\n{log.read_text()[-2000:]}" if log else ""
    raise TimeoutError(f"waited {PATIENCE} s for {what}{said}")
