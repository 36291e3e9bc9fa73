"""What a host may do to a file, for a test's Site to do it."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from .conftest import Fault, Handler, Site


def missing(handler: Handler, file: Path) -> None:
    """There is no such file."""
    handler.send_error(404)


def overloaded(handler: Handler, file: Path) -> None:
    """The host has too much to do."""
    handler.send_error(503)


def hang_up(handler: Handler, file: Path) -> None:
    """The connection is closed without an answer."""
    handler.close_connection = True


def cut_off(handler: Handler, file: Path) -> None:
    """Half of it comes, then the connection is closed."""
    data = file.read_bytes()
    handler.answer(data[: len(data) // 2], len(data))


def reset(handler: Handler, file: Path) -> None:
    cut_off(handler, file)
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def half(handler: Handler, file: Path) -> None:
    """And it says that this is all."""
    data = file.read_bytes()
    handler.answer(data[: len(data) // 2])


def too_short(handler: Handler, file: Path) -> None:
    """The end is missing, and the length says so too."""
    handler.answer(file.read_bytes()[:-1000])


def too_long(handler: Handler, file: Path) -> None:
    """More comes than there is; nothing says how much."""
    handler.answer(file.read_bytes() + bytes(1000), -1)


def empty(handler: Handler, file: Path) -> None:
    """Nothing comes, and that is all, as some hosts answer when they fail."""
    handler.answer(b"")


def flipped(handler: Handler, file: Path) -> None:
    """One bit near the end is another; the size is right."""
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    handler.answer(bytes(data))


def web_page(handler: Handler, file: Path) -> None:
    """As hosts answer that send every unknown address the same page."""
    handler.answer(b"\n<!DOCTYPE html><title>Log in</title>", type="text/html")


def web_page_of_its_size(handler: Handler, file: Path) -> None:
    handler.answer(b"<html>".ljust(file.stat().st_size))


def names(site: Site, pattern: str, fault: Fault) -> dict[str, Fault]:
    """The faults of all files that are called so."""
    found = {path.name: fault for path in site.folder.rglob(pattern)}
    assert found
    return found
