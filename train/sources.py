"""Reads documents from where people have their text, one after the other: a text may be larger than memory.

    .txt, .txt.xz   UTF-8, or what the byte-order mark says; a line ``<|endoftext|>`` ends a document
    .jsonl          one document in a field of each line's object
    .parquet        one document in a column of each row (this takes the package pyarrow)
    a folder        the files of these kinds in it, in the order of their paths

A text without an end mark is one document, and of one longer than `LONGEST_DOCUMENT` each such part is.
"""

from __future__ import annotations

import codecs
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from fabella.errors import short_text
from fabella.metadata import quoted
from fabella.tokenizer import well_formed

from . import explain
from .progress import Progress, say

END_OF_TEXT = "<|endoftext|>"
FIELD = "text"  # where .jsonl and .parquet files usually have it
LONGEST_DOCUMENT = 20_000_000  # characters
LONGEST_LINE = 10 * LONGEST_DOCUMENT  # of .jsonl: escaped, a character may take six
READ_AT_ONCE = 1 << 20  # bytes
BEGINNING = 1024  # bytes that tell what kind of file it is

XZ = b"\xfd7zXZ\x00"
BYTE_ORDER_MARKS = {  # longest first: UTF-32's begins like UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NO_TEXT = {  # what files that hold no plain text begin with
    b"PK\x03\x04": "a zip archive (.docx, .odt and .epub are such, too); save its text as plain text",
    b"\x1f\x8b": "compressed by gzip; unpack it (gunzip)",
    b"BZh": "compressed by bzip2; unpack it (bunzip2)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it (unzstd)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    b"%PDF-": "a PDF; save its text as plain text (pdftotext)",
    b"{\\rtf": "a rich text file; save it as plain text",
    b"\xd0\xcf\x11\xe0": "an old Office document; save it as plain text",
    b"PAR1": "a Parquet table; give it a name that ends in .parquet",
    b"GGUF": "a GGUF model",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch that (git lfs pull)",
}
ENDINGS = (".txt", ".txt.xz", ".jsonl", ".jsonl.xz", ".parquet")  # of the files that are read of a folder


def read_documents(path: Path, field: str = FIELD) -> list[str]:
    """All documents of a source at once; raises as `documents_of` does."""
    return list(documents_of(path, field))


def documents_of(path: Path, field: str = FIELD) -> Iterator[str]:
    """The documents of a file or folder, without surrounding newlines and empty ones.

    ``field`` is the one of .jsonl and .parquet files that holds the text. Lines may end in any system's way.
    Raises ``OSError`` or ``ValueError``, in words.
    """
    some = False
    for file in _files(path):
        for document in _documents(file, field):
            # Files that were joined to one have their byte-order marks inside.
            document = document.strip("\n\ufeff")
            if document.strip():
                some = True
                yield document
    if not some:
        raise ValueError(f"{path}: holds no text")


def _files(path: Path) -> list[Path]:
    """The files to read, which exist."""
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.name.endswith(ENDINGS) and file.is_file())
        files = sorted(file for file in inside if not any(part[0] == "." for part in file.relative_to(path).parts))
        if not files:
            raise FileNotFoundError(f"{path}: is a folder without a file that ends in {', '.join(ENDINGS)}")
        return files
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such text file")
    if not (path.is_file() or path.is_fifo()):
        raise OSError(f"{path}: is not a text file")
    return [path]


def _documents(path: Path, field: str) -> Iterator[str]:
    if path.suffix == ".parquet":
        return _rows(path, field)
    text = _decoded(_unpacked(path), path)
    return _fields(text, path, field) if ".jsonl" in path.suffixes[-2:] else _split(text)


# --- Plain text ---


def _split(text: Iterator[str]) -> Iterator[str]:
    """The documents between end marks of a text that comes in parts."""
    rest = ""
    for part in text:
        *documents, rest = (rest + part).split(END_OF_TEXT)
        yield from documents
        if len(rest) > LONGEST_DOCUMENT:
            # Not within what may be the beginning of a mark: a mark stands on a line of its own.
            cut = rest.rfind("\n", 0, -len(END_OF_TEXT)) + 1 or LONGEST_DOCUMENT - len(END_OF_TEXT)
            yield rest[:cut]
            rest = rest[cut:]
    yield rest


def _decoded(raw: Iterator[bytes], path: Path) -> Iterator[str]:
    """The characters of a file's bytes, all lines ended by a newline."""
    beginning = b""
    for part in raw:
        beginning += part
        if len(beginning) >= BEGINNING:
            break
    _check_kind(beginning, path)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if beginning.startswith(mark)), "utf-8")
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    n_bytes = n_characters = 0

    def decode(part: bytes, final: bool = False) -> str:
        nonlocal n_bytes, n_characters
        n_bytes += len(part)
        try:
            text = decoder.decode(part, final)
        except UnicodeDecodeError as error:
            place = n_bytes - len(error.object) + error.start  # its object begins with what was left of the part before
            raise ValueError(f"{path}: byte {place} is not {_advice_on_encoding(encoding)}") from error
        if (zero := text.find("\0")) >= 0:
            place = n_characters + zero
            advice = _advice_on_zeros(beginning)
            raise ValueError(f"{path}: character {place} is a zero, as no text has them{advice}")
        n_characters += len(text)
        return text

    first = decode(beginning)
    if first[:200].lstrip().lower().startswith(("<!doctype html", "<html")):
        say(f"{path}: looks like a web page (HTML); the model will learn its tags, too.")
    yield first
    for part in raw:
        yield decode(part)
    yield decode(b"", final=True)


def _check_kind(beginning: bytes, path: Path) -> None:
    """Raise ``ValueError`` if a file begins like one that is no text."""
    for start, kind in NO_TEXT.items():
        if beginning.startswith(start):
            raise ValueError(f"{path}: is not a text file but {kind}")
    if beginning[257:262] == b"ustar":
        raise ValueError(f"{path}: is not a text file but a tar archive; unpack it")


def _advice_on_encoding(encoding: str) -> str:
    if encoding.startswith("utf-8"):
        return "UTF-8 text; if it is Latin-1 or of old Windows: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
    return f"{encoding.upper()} text; though the file's first bytes promise {encoding.upper()}: it may be cut"


def _advice_on_zeros(beginning: bytes) -> str:
    """What to do with a text in which many bytes are zero, by where they are: Latin letters leave them in UTF-16."""
    beginning = beginning[:BEGINNING]
    high, low = (beginning[start::2].count(0) / max(1, len(beginning) // 2) for start in (0, 1))
    if max(high, low) < 0.3:
        return ""
    name = "UTF-32" if min(high, low) > 0.3 else "UTF-16"
    order = "BE" if beginning[:1] == b"\0" else "LE"
    return f"; it looks like {name} without a byte-order mark: iconv -f {name}{order} -t UTF-8 FILE > NEW"


def _unpacked(path: Path) -> Iterator[bytes]:
    """The bytes of a file in parts, unpacked if xz packed them."""
    parts = _read(path)
    first = next(parts, b"")
    if first.startswith(XZ):
        yield from _unpack(first, parts, path)
        return
    if path.suffix == ".xz":
        raise ValueError(f"{path}: not a complete .xz file (its first bytes are not those of one)")
    yield first
    yield from parts


def _read(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file, Progress("reading", path.stat().st_size, "B") as progress:
        while part := file.read(READ_AT_ONCE):
            progress.update(len(part))
            yield part


def _unpack(part: bytes, parts: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """What xz packed: one stream after the other, with zeros between them at most, and all of them whole."""
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    while part:
        try:
            yield stream.decompress(part, READ_AT_ONCE)
            while not (stream.eof or stream.needs_input):
                yield stream.decompress(b"", READ_AT_ONCE)
        except lzma.LZMAError as error:
            raise ValueError(f"{path}: not a complete .xz file ({error})") from error
        part = stream.unused_data
        while stream.eof and (part := part.lstrip(b"\0") or next(parts, b"")):
            if part.startswith(b"\0"):
                continue
            if not part.startswith(XZ[: len(part)]):
                left = len(part) + sum(map(len, parts))
                raise ValueError(f"{path}: not a clean .xz file: {left:,} bytes follow its end")
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        part = part or next(parts, b"")
    if not stream.eof:
        raise ValueError(f"{path}: not a complete .xz file (it ends too early)")


# --- Tables ---


def _fields(text: Iterator[str], path: Path, field: str) -> Iterator[str]:
    """A field of each line's object."""
    for number, line in enumerate(_lines(text, path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.lstrip("\ufeff"))
        except RecursionError as error:
            raise ValueError(f"{path}: line {number} is JSON within JSON, too deep to be read") from error
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}), as each line of .jsonl is") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is no object, as {{{json.dumps(field)}: ...}}")
        _check_field(field, list(row), f"{path}: line {number}")
        if not isinstance(row[field], str):
            raise ValueError(f"{path}: line {number}: {field} is no text")
        # JSON can write halves of characters, which no text has.
        yield well_formed(row[field]).replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: Iterator[str], path: Path) -> Iterator[str]:
    """The lines of a text that comes in parts."""
    rest: list[str] = []  # of a line, the parts so far
    n_characters = 0
    for part in text:
        first, *lines = part.split("\n")
        rest.append(first)
        n_characters += len(first)
        if n_characters > LONGEST_LINE:
            raise ValueError(f"{path}: a line has more than {LONGEST_LINE:,} characters; each document has its own")
        if lines:
            yield "".join(rest)
            yield from lines[:-1]
            rest, n_characters = lines[-1:], len(lines[-1])
    yield "".join(rest)


def _rows(path: Path, field: str) -> Iterator[str]:
    """A column of each row of a Parquet table."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"{path}: to read Parquet tables takes one more package: pip install pyarrow") from error
    try:
        with ParquetFile(path) as table, Progress("reading", table.metadata.num_rows, " rows") as progress:
            _check_field(field, table.schema_arrow.names, str(path))
            for batch in table.iter_batches(1000, columns=[field]):
                for text in batch.column(0).to_pylist():
                    if text is not None and not isinstance(text, str):
                        raise ValueError(f"{path}: {field} is no column of texts")
                    yield (text or "").replace("\r\n", "\n").replace("\r", "\n")
                progress.update(batch.num_rows)
    except ArrowException as error:
        raise ValueError(f"{path}: is damaged, or not a Parquet table") from error


def _check_field(field: str, names: list[str], where: str) -> None:
    if field not in names:
        there = ", ".join(short_text(name, longest=40) for name in names[:20]) or "none"
        raise ValueError(f"{where} has no field {quoted(field)}; it has {there} (name one: --field)")


if __name__ == "__main__":
    explain(__doc__)
