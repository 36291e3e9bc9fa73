"""Browsers that tests drive: Chromium, Firefox and WebKit, as this machine has them.

Playwright drives the Chromium of any distribution, but only its own Firefox and WebKit. Those of Debian listen to the
W3C's WebDriver: WebKit's driver over HTTP, Firefox itself to Marionette, its commands as JSON on a socket. What a test
asks of them is little: open a page, run a script in it, set the window's size, take a picture.

Not WebDriver BiDi: with it Firefox watches for workers, and on a busy machine a worker that starts one of its own may
then wait for ever (Firefox 153: it and its child sleep on one condition variable, and the wrong one is woken).
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

from builder import install

from .patience import PATIENCE

T = TypeVar("T")

# No host but this machine: everything else goes to a proxy that does not exist.
FIREFOX_PREFERENCES = {"network.proxy.type": 1, "network.proxy.http": "127.0.0.1", "network.proxy.http_port": 9}
FIREFOX_PREFERENCES |= {"network.proxy.ssl": "127.0.0.1", "network.proxy.ssl_port": 9}
FIREFOX_PREFERENCES |= {"marionette.port": 0}  # any that is free


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

    def wait(self, script: str, *arguments: object) -> Any:
        """Runs the body of a function in the page again and again until it returns something true, and returns that.

        It is the page that looks, not the driver: asked fifty times a second, WebKit's once had no answer.

        Raises
        ------
        ScriptError
            Before PATIENCE is over, or with the JavaScript error's words.
        """
        return self.run(
            f"""const look = () => {{ {script} }};
            const end = performance.now() + {900 * PATIENCE}; // the driver gives up after {1000 * PATIENCE}
            while (performance.now() < end) {{
                const found = look();
                if (found) return found;
                await new Promise((next) => setTimeout(next, 20));
            }}
            throw new Error(`waited in vain for ${{look}}`);""",
            *arguments,
        )


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
    """Firefox, through Marionette (https://firefox-source-docs.mozilla.org/testing/marionette/Protocol.html)."""

    name = "Firefox"

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.stream = connection.makefile("rb")
        self.commands = 0
        self._receive()  # its greeting
        session = self._command("WebDriver:NewSession")
        self._command("WebDriver:SetTimeouts", script=1000 * PATIENCE, pageLoad=1000 * PATIENCE)
        self.version = session["capabilities"]["browserVersion"]

    def _receive(self) -> Any:
        """The next message, which comes as its length in bytes, a colon and so many bytes of JSON."""
        digits = b""
        while not digits.endswith(b":"):
            digit = self.stream.read(1)
            if not digit:
                raise ScriptError("Firefox has closed the connection")
            digits += digit
        return json.loads(self.stream.read(int(digits[:-1])))

    def _command(self, name: str, **parameters: object) -> Any:
        """Sends a command and returns its result."""
        self.commands += 1
        message = json.dumps([0, self.commands, name, parameters]).encode()
        self.connection.sendall(b"%d:%b" % (len(message), message))
        _, number, error, result = self._receive()
        assert number == self.commands
        if error:
            raise ScriptError(f"Firefox: {name}: {error['message']}")
        return result

    def open(self, url: str) -> None:
        self._command("WebDriver:Navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        """The window may not be as narrow as a telephone, but the page in it may."""
        self._command("WebDriver:SetWindowRect", width=max(width, 600) + 50, height=height + 200)
        style = "Object.assign(gBrowser.selectedBrowser.style, arguments[0])"
        self._command("Marionette:SetContext", value="chrome")
        self._command("WebDriver:ExecuteScript", script=style, args=[{"width": f"{width}px", "height": f"{height}px"}])
        self._command("Marionette:SetContext", value="content")

    def picture(self) -> bytes:
        return base64.b64decode(self._command("WebDriver:TakeScreenshot", full=False)["value"])

    def _evaluate(self, function: str) -> str:
        script = f"const [done] = arguments; ({function})().then(done);"
        return str(self._command("WebDriver:ExecuteAsyncScript", script=script, args=[])["value"])


@contextmanager
def firefox() -> Iterator[Firefox]:
    """The machine's Firefox, without a window and with a profile of its own."""
    program = install.find_firefox()
    if not program:
        raise Missing(f"Firefox is not installed. {install.install_by_hand(install.FIREFOX_PACKAGES)}")
    with TemporaryDirectory(prefix="firefox-", ignore_cleanup_errors=True) as profile:
        preferences = (
            f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in FIREFOX_PREFERENCES.items()
        )
        Path(profile, "user.js").write_text("\n".join(preferences), encoding="utf-8")
        log, port = Path(profile, "log.txt"), Path(profile, "MarionetteActivePort")
        marionette = ["--marionette", "--remote-allow-system-access"]  # the latter to resize
        command = [program, "--headless", "--no-remote", "--profile", profile, *marionette]
        with process(command, log):
            number = wait_for(lambda: port.read_text() if port.exists() else "", "Firefox", log)
            with socket.create_connection(("127.0.0.1", int(number)), timeout=PATIENCE) as connection:
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
    programs = install.find_webkit()
    if not programs:
        raise Missing(f"WebKit's driver or Xvfb is not installed. {install.install_by_hand(install.WEBKIT_PACKAGES)}")
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
