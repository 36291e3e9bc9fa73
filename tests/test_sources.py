"""Where people have their text: plain files, tables, folders, and TinyStories by name."""

from __future__ import annotations

import http.server
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from train import sources, tinystories
from train.sources import documents_of, read_documents


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("read_at_once", [6, 7, 50, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, lzma.compress], ids=["plain", "xz"])
def test_a_text_is_the_same_in_whatever_parts_it_is_read(
    read_at_once: int, encoding: str, pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "READ_AT_ONCE", read_at_once)
    monkeypatch.setattr(sources, "BEGINNING", 4)
    text = "Ein Fuchs 🦊\r\nlief.\r<|endoftext|>\n\n<|endoftext|>猫が\nいた。\n"
    path = written(tmp_path / "text.txt", pack(text.encode(encoding)))
    assert read_documents(path) == ["Ein Fuchs 🦊\nlief.", "猫が\nいた。"]


def test_the_place_of_a_wrong_byte_is_that_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "READ_AT_ONCE", 3)
    monkeypatch.setattr(sources, "BEGINNING", 4)
    path = written(tmp_path / "text.txt", "ääää".encode() + b"\xe4b")
    with pytest.raises(ValueError, match="byte 8 is not UTF-8"):
        read_documents(path)
    path = written(tmp_path / "text.txt", "äää\0".encode())
    with pytest.raises(ValueError, match="character 3 is a zero"):
        read_documents(path)


def test_a_document_that_never_ends_is_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 100)
    monkeypatch.setattr(sources, "BEGINNING", 4)
    monkeypatch.setattr(sources, "READ_AT_ONCE", 30)
    lines = [f"The fox ran on, day {day}." for day in range(100)]
    documents = read_documents(written(tmp_path / "text.txt", "\n".join(lines)))
    assert "\n".join(documents) == "\n".join(lines)
    assert max(map(len, documents)) <= 130
    dense = "".join(read_documents(written(tmp_path / "text.txt", "猫" * 1000)))
    assert dense == "猫" * 1000


def test_a_field_of_each_line(tmp_path: Path) -> None:
    rows = [{"text": "A tale.\r\nIts end.", "story": "other"}, {"story": "B", "text": " \n"}, {"text": "C\u2028d"}]
    content = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for name, pack in (("rows.jsonl", bytes), ("rows.jsonl.xz", lzma.compress)):
        path = written(tmp_path / name, pack(content.encode()))
        assert read_documents(path) == ["A tale.\nIts end.", "C\u2028d"]
    with pytest.raises(ValueError, match=r"line 5 has no field 'story'; it has text \(name one: --field\)"):
        read_documents(path, "story")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "A', "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is JSON within JSON, too deep to be read"),
        (json.dumps({"k" * 10**6: 1, "\x1b[31mred": 1}), r"line 2 has no field 'text'; it has k{39}…, \[31mred \(name"),
        ('["A"]', "line 2 is no object"),
        ('{"text": 7}', "line 2: text is no text"),
    ],
)
def test_lines_that_hold_no_text_are_named(line: str, problem: str, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", '{"text": "A"}\n' + line)
    with pytest.raises(ValueError, match=rf"rows\.jsonl: {problem}"):
        read_documents(path)


def test_halves_of_characters_are_none(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", r'{"text": "one \ud83d, one \ud83d\ude00"}')
    assert read_documents(path) == ["one \ufffd, one \U0001f600"]


def test_a_line_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "READ_AT_ONCE", 64)
    monkeypatch.setattr(sources, "BEGINNING", 16)
    monkeypatch.setattr(sources, "LONGEST_LINE", 1000)
    path = written(tmp_path / "rows.jsonl", '{"text": "A"}\n' * 100)
    assert read_documents(path) == ["A"] * 100
    written(path, "[" + '{"text": "A"}, ' * 100)
    with pytest.raises(ValueError, match="a line has more than 1,000 characters"):
        read_documents(path)


def test_a_column_of_a_parquet_table(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow, which is too large to be asked of everybody")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"text": ["A\r\ntale.", None, "B"], "count": [1, 2, 3]}), path)
    assert read_documents(path) == ["A\ntale.", "B"]
    with pytest.raises(ValueError, match="has no field 'story'; it has text, count"):
        read_documents(path, "story")
    with pytest.raises(ValueError, match="count is no column of texts"):
        read_documents(path, "count")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged, or not a Parquet table"):
        read_documents(path)


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        read_documents(written(tmp_path / "rows.parquet", b"PAR1"))


def test_a_folder_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "tales"
    written(folder / "b.txt", "B 1\n<|endoftext|>\nB 2")
    written(folder / "a/z.txt.xz", lzma.compress(b"A"))
    written(folder / "c.jsonl", '{"text": "C"}')
    written(folder / "notes.md", "not this")
    written(folder / ".hidden/d.txt", "nor this")
    assert list(documents_of(folder)) == ["A", "B 1", "B 2", "C"]
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="a folder without a file that ends in"):
        read_documents(empty)


# --- TinyStories ---


class Host(http.server.BaseHTTPRequestHandler):
    """A host that breaks off each answer after a while, and knows how to go on, or does not."""

    content = bytes(range(256)) * 40
    longest = 4000
    knows_ranges = True
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        if not self.path.endswith(tinystories.TRAIN):
            self.send_error(404)
            return
        wanted = self.headers["Range"] if self.knows_ranges else None
        self.asked.append(wanted)
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if begin >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.content) - begin))
        self.end_headers()
        self.wfile.write(self.content[begin:][: self.longest])

    def log_message(self, format: str, *arguments: object) -> None:
        """Stays silent."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Host]]:
    handler = type("Own", (Host,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setattr(tinystories, "URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield handler
        server.shutdown()


def test_a_download_that_breaks_off_goes_on(host: type[Host]) -> None:
    path = tinystories.fetch(tinystories.TRAIN)
    assert path.read_bytes() == Host.content
    assert host.asked == [None, "bytes=4000-", "bytes=8000-"]
    assert list(path.parent.iterdir()) == [path]
    assert tinystories.fetch(tinystories.TRAIN) == path
    assert len(host.asked) == 3  # not again


def test_what_has_come_of_a_download_is_kept(host: type[Host], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinystories, "TRIES", 2)
    with pytest.raises(OSError, match=r"only 8,000 of 10,240 bytes came.*the same command goes on from there"):
        tinystories.fetch(tinystories.TRAIN)
    assert tinystories.fetch(tinystories.TRAIN).read_bytes() == Host.content
    assert host.asked == [None, "bytes=4000-", "bytes=8000-"]


def test_a_host_that_cannot_go_on_sends_all_of_it(host: type[Host]) -> None:
    host.knows_ranges = False
    with pytest.raises(OSError, match="only 4,000 of 10,240 bytes came"):
        tinystories.fetch(tinystories.TRAIN)
    host.longest = 20_000
    assert tinystories.fetch(tinystories.TRAIN).read_bytes() == Host.content


def test_a_part_that_is_not_of_this_file_is_begun_anew(host: type[Host]) -> None:
    host.longest = 20_000
    part = tinystories.fetch(tinystories.TRAIN).rename(tinystories.fetch(tinystories.TRAIN).with_suffix(".part"))
    assert part.stat().st_size == len(Host.content)
    assert tinystories.fetch(tinystories.TRAIN).read_bytes() == Host.content


def test_a_host_without_the_file_is_said(host: type[Host]) -> None:
    with pytest.raises(OSError, match=r"none\.txt: cannot be downloaded \(Not Found\)"):
        tinystories.fetch("none.txt")
    assert not host.asked


def test_tinystories_is_a_name_where_no_file_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tinystories.is_named(Path("tinystories"))
    assert not tinystories.is_named(Path("stories.txt"))
    written(tmp_path / "tinystories", "A tale.")
    assert not tinystories.is_named(Path("tinystories"))
