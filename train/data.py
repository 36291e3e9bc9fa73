"""Turns a text file into batches of token ids.

A text holds documents (stories), each ended by a line ``<|endoftext|>``; a text without such lines is one document.
Every document becomes BOS + tokens + EOS. Training rows never mix documents: a row is one whole document, or a piece of
one longer than the context, so that a model learns stories as it will tell them: from BOS, at position 0.

Rows of similar length share a batch, which leaves little padding. The order is shuffled, but by (seed, epoch) alone, so
that a resumed run sees exactly what an uninterrupted one would have.
"""

from __future__ import annotations

import codecs
import hashlib
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from . import explain
from .progress import Progress, say
from .run import RunFolder
from .tokenizer import BOS, EOS, cut_text

END_OF_TEXT = "<|endoftext|>"
PADDING = -1  # as a target: not counted in the loss
LENGTH_STEP = 32  # row lengths are rounded up to this: fewer shapes to allocate, faster kernels
LONGEST_PIECE = 100_000  # characters encoded at once: a long document's bar moves, and its cost grows with its length
HELD_OUT_PIECE = 2_000  # characters
READ_AT_ONCE = 1 << 20  # bytes

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
    b"PAR1": "a Parquet table; write its text column as plain text",
    b"GGUF": "a GGUF model",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch that (git lfs pull)",
}


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, plain or packed by xz, without surrounding newlines and empty ones.

    The text is UTF-8, or what its byte-order mark says (UTF-16, UTF-32). Lines may end in any system's way.
    Raises ``OSError`` or ``ValueError``, in words.
    """
    raw = _read(path)
    for start, kind in NO_TEXT.items():
        if raw.startswith(start):
            raise ValueError(f"{path}: is not a text file but {kind}")
    if raw[257:262] == b"ustar":
        raise ValueError(f"{path}: is not a text file but a tar archive; unpack it")
    text = _decode(raw, path)
    if text[:200].lstrip().lower().startswith(("<!doctype html", "<html")):
        say(f"{path}: looks like a web page (HTML); the model will learn its tags, too.")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # Files that were joined to one have their byte-order marks inside.
    documents = [document.strip("\n\ufeff") for document in text.split(END_OF_TEXT)]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise ValueError(f"{path}: holds no text")
    return documents


def _read(path: Path) -> bytes:
    """The bytes of a file, unpacked if xz packed them."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a text file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such text file")
    if not (path.is_file() or path.is_fifo()):
        raise OSError(f"{path}: is not a text file")
    parts: list[bytes] = []
    with open(path, "rb") as file, Progress("reading", path.stat().st_size, "B") as progress:
        while part := file.read(READ_AT_ONCE):
            parts.append(part)
            progress.update(len(part))
    raw = b"".join(parts)
    if raw.startswith(XZ):
        return _unpack(raw, path)
    if path.suffix == ".xz":
        raise ValueError(f"{path}: not a complete .xz file (its first bytes are not those of one)")
    return raw


def _unpack(raw: bytes, path: Path) -> bytes:
    """What xz packed: one stream after the other, with zeros between them at most, and all of them whole."""
    parts: list[bytes] = []
    left = memoryview(raw)
    with Progress("unpacking", len(raw), "B") as progress:
        while left:
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            try:
                while not stream.eof and left:
                    parts.append(stream.decompress(left[:READ_AT_ONCE]))
                    progress.update(min(READ_AT_ONCE, len(left)))
                    left = left[READ_AT_ONCE:]
            except lzma.LZMAError as error:
                raise ValueError(f"{path}: not a complete .xz file ({error})") from error
            if not stream.eof:
                raise ValueError(f"{path}: not a complete .xz file (it ends too early)")
            left = memoryview((stream.unused_data + left).lstrip(b"\0"))
            if left and not stream.unused_data.lstrip(b"\0").startswith(XZ[: len(left)]):
                raise ValueError(f"{path}: not a clean .xz file: {len(left):,} bytes follow its end")
    return b"".join(parts)


def _decode(raw: bytes, path: Path) -> str:
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            advice = "if it is Latin-1 or of old Windows: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
        else:
            advice = f"though the file's first bytes promise {encoding.upper()}: it may be cut"
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise ValueError(f"{path}: byte {error.start} is not {name} text; {advice}") from error
    place = text.find("\0")
    if place >= 0:
        raise ValueError(f"{path}: character {place} is a zero, as no text has them{_advice_on_zeros(raw)}")
    return text


def _advice_on_zeros(raw: bytes) -> str:
    """What to do with a text in which many bytes are zero, by where they are: Latin letters leave them in UTF-16."""
    beginning = raw[:1024]
    high, low = (beginning[start::2].count(0) / max(1, len(beginning) // 2) for start in (0, 1))
    if max(high, low) < 0.3:
        return ""
    name = "UTF-32" if min(high, low) > 0.3 else "UTF-16"
    order = "BE" if beginning[:1] == b"\0" else "LE"
    return f"; it looks like {name} without a byte-order mark: iconv -f {name}{order} -t UTF-8 FILE > NEW"


def split_documents(documents: list[str], held_out: float = 0.01) -> tuple[list[str], list[str]]:
    """Keep the last ``held_out`` of the text's characters for validation (at least one), and learn from the rest.

    Whole documents from the end on, as many as fit; where these are less than half of it, the one before them is cut,
    and what is cut off is held out in pieces: of each document only the beginning is measured (evaluate.py).
    """
    share = max(1, int(sum(map(len, documents)) * held_out))
    count = size = 0
    while count < len(documents) - 1 and size + len(documents[-1 - count]) <= share:
        size += len(documents[-1 - count])
        count += 1
    learned, kept = documents[: len(documents) - count], documents[len(documents) - count :]
    if size < share / 2:
        last = learned.pop()
        cut = len(last) - (share - size)
        learned += [last[:cut]] if cut > 0 else []
        kept = [*cut_text(last[max(0, cut) :], HELD_OUT_PIECE), *kept]
    return learned, kept


def hash_documents(documents: list[str]) -> str:
    """The SHA-256 of a text, whatever its file's encoding, packing and ends of lines."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True)
class Tokens:
    """Encoded documents, one after the other: ``ids`` uint16 [n]; document i is ``ids[starts[i]:starts[i + 1]]``."""

    ids: NDArray[np.uint16]
    starts: NDArray[np.int64]


def encode_documents(documents: list[str], tokenizer: SentencePieceProcessor) -> Tokens:
    """BOS + tokens + EOS for every document."""
    ids: list[NDArray[np.uint16]] = []
    starts = [0]
    # A piece that continues a document follows a newline, which no token contains: so it gets no space at its front.
    newline = tokenizer.encode("\n")
    with Progress("encoding", sum(map(len, documents)), " characters") as progress:
        for document in documents:
            length = 2
            ids.append(np.array([BOS], dtype=np.uint16))
            for number, piece in enumerate(cut_text(document, LONGEST_PIECE)):
                encoded = tokenizer.encode("\n" + piece)[len(newline) :] if number else tokenizer.encode(piece)
                ids.append(np.array(encoded, dtype=np.uint16))
                length += len(encoded)
                progress.update(len(piece))
            ids.append(np.array([EOS], dtype=np.uint16))
            starts.append(starts[-1] + length)
    return Tokens(np.concatenate(ids), np.array(starts, dtype=np.int64))


def encode_text(folder: RunFolder, text_hash: str, documents: list[str], tokenizer: SentencePieceProcessor) -> Tokens:
    """The documents of the text whose hash is given, encoded; kept in the run's folder for the next start."""
    key = hashlib.sha256(tokenizer.serialized_model_proto() + text_hash.encode()).digest()
    stored = folder.read_cache()
    if stored is not None and stored.startswith(key):
        tokens = _unpack_tokens(stored[len(key) :])
        if len(tokens.starts) == len(documents) + 1 and _fit(tokens, tokenizer.vocab_size()):
            return tokens
    tokens = encode_documents(documents, tokenizer)
    count = np.array([len(tokens.starts)], dtype="<i8")
    folder.write_cache(b"".join([key, count.tobytes(), tokens.starts.astype("<i8").tobytes(), _bytes(tokens.ids)]))
    return tokens


def _bytes(ids: NDArray[np.uint16]) -> bytes:
    return ids.astype("<u2").tobytes()


def _unpack_tokens(data: bytes) -> Tokens:
    numbers = 1 + int(np.frombuffer(data, "<i8", 1)[0])
    starts = np.frombuffer(data, "<i8", numbers)[1:]
    return Tokens(np.frombuffer(data, "<u2", offset=8 * numbers), starts)


def _fit(tokens: Tokens, vocab_size: int) -> bool:
    """Whether these can be tokens of a text: documents one behind the other, ids of the vocabulary."""
    starts = tokens.starts
    return bool(starts[0] == 0 and starts[-1] == len(tokens.ids) and (np.diff(starts) >= 2).all()) and bool(
        (tokens.ids < vocab_size).all()
    )


def cut_rows(tokens: Tokens, length: int) -> NDArray[np.int64]:
    """Rows as (start, end) into ``tokens.ids``: [rows, 2], each up to ``length`` inputs plus the last one's target.

    A document longer than that is cut; its last row reaches back so that it is full, too, and has context to use.
    """
    rows: list[tuple[int, int]] = []
    for first, last in zip(tokens.starts[:-1].tolist(), tokens.starts[1:].tolist(), strict=True):
        start = first
        while last - start > length + 1:
            rows.append((start, start + length + 1))
            start += length
        rows.append((max(first, min(start, last - length - 1)), last))
    return np.array(rows, dtype=np.int64)


def plan_epoch(rows: NDArray[np.int64], batch_tokens: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The batches of one pass over the text: each an array of row numbers, padded size at most ``batch_tokens``."""
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(rows))
    lengths = rows[:, 1] - rows[:, 0] - 1
    batches: list[NDArray[np.int64]] = []
    for pool in np.array_split(order, max(1, lengths.sum() // (50 * batch_tokens))):  # about 50 batches each
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        begin = 0
        for end in range(1, len(pool) + 1):
            full = end == len(pool) or (end + 1 - begin) * padded(lengths[pool[end]]) > batch_tokens
            if full:
                batches.append(pool[begin:end])
                begin = end
    return [batches[i] for i in random.permutation(len(batches))]


def padded(length: int) -> int:
    """The width of a batch whose longest row has ``length`` inputs."""
    return -(-int(length) // LENGTH_STEP) * LENGTH_STEP


def make_batch(tokens: Tokens, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (the inputs shifted by one), int64 [rows, longest]; padding is EOS with target ``PADDING``."""
    width = padded(max(end - start - 1 for start, end in rows))
    inputs = np.full((len(rows), width), EOS, dtype=np.int64)
    targets = np.full((len(rows), width), PADDING, dtype=np.int64)
    for i, (start, end) in enumerate(rows):
        inputs[i, : end - start - 1] = tokens.ids[start : end - 1]
        targets[i, : end - start - 1] = tokens.ids[start + 1 : end]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def batches(
    tokens: Tokens, length: int, batch_tokens: int, seed: int, step: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches (inputs, targets), shuffled anew each epoch, beginning with that of ``step``."""
    rows = cut_rows(tokens, length)
    epoch = 0
    while True:
        plan = plan_epoch(rows, batch_tokens, seed, epoch)
        for batch in plan[step:]:
            yield make_batch(tokens, rows[batch])
        step = max(0, step - len(plan))
        epoch += 1


if __name__ == "__main__":
    explain(__doc__)
