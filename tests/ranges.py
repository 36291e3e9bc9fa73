"""A host that answers requests for parts of a file, as most do, and as badly as a test wants."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from threading import Semaphore

from .conftest import Handler

MIB = 1 << 20


@dataclass
class RangeHost:
    """A fault (tests/faults.py) of a file: what was asked, and what is answered."""

    cuts: list[int] = field(default_factory=list)  # where in the file each of the next answers breaks off
    cutting: Semaphore = field(default_factory=lambda: Semaphore(0))  # released for each, once what was sent is there
    etag: str = '"first"'
    ignores_ranges: bool = False
    ignores_conditions: bool = False  # sends a part of a file that has changed
    shift: int = 0  # of what Content-Range says, in bytes
    growth: int = 0  # of the length that Content-Range says, in bytes
    unsatisfiable: bool = False  # 416 to every request for a part
    cross_origin: bool = False
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)  # Range and If-Range of each request

    def __call__(self, handler: Handler, file: Path) -> None:
        """Answers a request."""
        data = file.read_bytes()
        wanted, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.asked.append((wanted, condition))
        found = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        begin = int(found[1]) if found else 0
        is_part = wanted is not None and not self.ignores_ranges
        is_part = is_part and (self.ignores_conditions or condition in (None, self.etag))
        handler.close_connection = True
        if is_part and self.unsatisfiable:
            handler.send_error(416)
            return
        total = len(data) + (self.growth if is_part else 0)
        handler.send_response(206 if is_part else 200)
        if is_part:
            handler.send_header("Content-Range", f"bytes {begin + self.shift}-{total - 1}/{total}")
        handler.send_header("Content-Type", "application/octet-stream")
        handler.send_header("Content-Length", str(len(data) - (begin if is_part else 0)))
        handler.send_header("ETag", self.etag)
        if self.cross_origin:
            handler.send_header("Access-Control-Allow-Origin", "*")
            handler.send_header("Access-Control-Expose-Headers", "Content-Range, ETag")
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(data)
        handler.wfile.write(data[begin if is_part else 0 : cut])
        handler.wfile.flush()
        if cut < len(data):
            self.cutting.acquire()  # a browser loses what it has not read of a connection that is cut
