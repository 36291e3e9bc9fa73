"""Serving a built page on this machine, as a good static host would."""

from __future__ import annotations

import errno
import http.server
import re
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from builder.tools import BuildError, say

# The headers with which a host allows the page threads; its clock is finer, too.
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class PageHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a built page as a good static host would: right types, and names that carry a hash kept for ever."""

    protocol_version = "HTTP/1.1"
    extensions_map = {  # noqa: RUF012 (as in the base class)
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        **{".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"},
        **{".gguf": "application/octet-stream", ".whl": "application/zip"},
        ".webmanifest": "application/manifest+json",
    }

    def __init__(self, *arguments: Any, directory: str, policy: str) -> None:
        self.policy = policy
        self.status = 0
        super().__init__(*arguments, directory=directory)

    def send_head(self) -> Any:
        """Find the file that is asked for; a path that no file can have is not found either."""
        try:
            return super().send_head()
        except ValueError:  # a null byte
            self.send_error(http.HTTPStatus.NOT_FOUND)
            return None

    def list_directory(self, path: Any) -> None:
        """Answer as hosts do that list no folders."""
        self.send_error(http.HTTPStatus.NOT_FOUND)

    def send_response(self, code: int, message: str | None = None) -> None:
        """Begin an answer, and note its status for the headers."""
        self.status = int(code)
        super().send_response(code, message)

    def end_headers(self) -> None:
        """Add the page's own Content-Security-Policy as a header, so that the worker is under it as well."""
        self.send_header("Content-Security-Policy", self.policy)
        for name, value in ISOLATION.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "max-age=31536000, immutable" if self.sends_hashed_file() else "no-cache")
        super().end_headers()

    def sends_hashed_file(self) -> bool:
        """Whether the answer is a file that changes its name with its content: no listing, and no error."""
        if self.status not in (200, 304):
            return False
        file = Path(self.translate_path(self.path))
        return file.is_file() and re.match(r"assets$|pyodide-", file.relative_to(self.directory).parts[0]) is not None

    def handle(self) -> None:
        """Answer one connection; the browser may close it at any time."""
        with suppress(ConnectionError):
            super().handle()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Say nothing of requests that went well; errors are logged all the same."""


def content_security_policy(index: str) -> str:
    """Return the policy that index.html sets for itself."""
    found = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]+)"', index)
    if not found:
        raise BuildError("web/index.html: its Content-Security-Policy is missing")
    return " ".join(found[1].split())


class PageServer(http.server.ThreadingHTTPServer):
    """Serves on an address of either family; a client that does something unheard of disturbs nobody."""

    def __init__(self, family: socket.AddressFamily, *arguments: Any) -> None:
        self.address_family = family
        super().__init__(*arguments)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong in one line."""
        say(f"A request from {client_address[0]} could not be answered: {sys.exception()}")


def find_address(host: str, port: int | None) -> socket.AddressFamily:
    """Check that a page could be served at an address, before it is built; return the address's family."""
    if port is not None and not 0 <= port <= 65535:
        raise BuildError(f"--port {port}: a port is a number from 0 to 65535")
    try:
        family: socket.AddressFamily = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as trial:
            trial.bind((host, 0))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BuildError(f"--host {host}: this machine cannot listen at that address ({reason})") from error
    return family


def listen(directory: Path, port: int | None, host: str = "127.0.0.1") -> PageServer:
    """Open the given port of this machine, or the first free one from 8000 on."""
    family = find_address(host, port)
    policy = content_security_policy((directory / "index.html").read_text(encoding="utf-8"))
    handler = partial(PageHandler, directory=str(directory), policy=policy)
    for candidate in [port] if port is not None else range(8000, 8100):
        try:
            return PageServer(family, (host, candidate), handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise BuildError(f"cannot serve at {host}, port {candidate}: {error.strerror}") from error
    raise BuildError(f"port {port} is taken: choose another with --port" if port else "ports 8000 to 8099 are taken")


def serve(server: PageServer, host: str) -> None:
    """Serve the built page, at this address, until Ctrl-C."""
    with server, suppress(KeyboardInterrupt):
        name = {"127.0.0.1": "localhost", "0.0.0.0": socket.gethostname()}.get(host, host)
        say(f"Serving at http://{name}:{server.server_port}/ (Ctrl-C stops)")
        server.serve_forever()
    say("")
