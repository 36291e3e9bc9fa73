"""What a file is if it is not a model: people save a web page, a pointer or an archive under a model's name."""

from __future__ import annotations

import codecs
import re

from fabella.errors import short_text

BEGINNING = 512  # bytes that are looked at
SHORTEST = 8  # of which anything can be told

TOKENIZER_BIN = "llama2.c's tokenizer.bin, which goes with a model and is none itself"
CONVERT = "convert the model to GGUF"
UNPACK = "unpack it first"

# What files begin with, and what they are then.
SIGNATURES = (
    (b"version https://git-lfs", "a pointer of Git LFS, in the file's place: `git lfs pull` fetches the file itself"),
    (b"PK\x03\x04", f"a zip archive, as torch.save writes it (.pt, .pth, .ckpt): {CONVERT}, or unpack it"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", f"compressed with gzip: {UNPACK}"),
    (b"\xfd7zXZ\0", f"compressed with xz: {UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"compressed with zstd: {UNPACK}"),
    (b"BZh", f"compressed with bzip2: {UNPACK}"),
    (b"\x04\x22\x4d\x18", f"compressed with lz4: {UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive: {UNPACK}"),
    (b"Rar!", f"a RAR archive: {UNPACK}"),
    (b"\x93NUMPY", f"an array of NumPy's (.npy): {CONVERT}"),
    (b"\x89HDF\r\n", f"an HDF5 file, as Keras writes it: {CONVERT}"),
    (b"%PDF-", "a PDF document"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"GIF8", "a picture (GIF)"),
    (b"\x7fELF", "a program (for Linux)"),
    (b"MZ", "a program (for Windows, or a llamafile)"),
    (b"\0\5\x16\7", "what macOS keeps beside a file (AppleDouble): the file itself is without the ._ in front"),
    (b"\0asm", "a WebAssembly module"),
    (b"SQLite format 3\0", "a SQLite database"),
)
# The formats before GGUF, whose four letters most programs wrote in the machine's order: backwards.
BEFORE_GGUF = (b"ggml", b"ggmf", b"ggjt", b"ggla")
# Names that say that the file is not all of it.
UNFINISHED = r"(?i)\.(part|partial|crdownload|download|aria2|incomplete|tmp)$"
ONE_OF_SEVERAL = r"(?i)-\d{5}-of-\d{5}\b|\.part-?\d+of\d+$"


def what_is(beginning: bytes, size: int) -> str | None:
    """Say what a file is if it is recognisably something else, in words that go on after "this is not a model but".

    Parameters
    ----------
    beginning
        Its first bytes, `BEGINNING` of them or all.
    size
        Bytes in all.
    """
    if size < SHORTEST:
        return f"a file of {size} bytes: the download may be incomplete"
    for signature, name in SIGNATURES:
        if beginning.startswith(signature):
            return name
    if beginning[:4] in BEFORE_GGUF or beginning[3::-1] in BEFORE_GGUF:
        return f"a file of ggml's from before GGUF (2023): {CONVERT}"
    if beginning[:1] == b"\x80" and beginning[1:2] in (b"\2", b"\3", b"\4", b"\5") and beginning[2:3] > b"\x20":
        return f"a pickle of Python's, as torch.save wrote it before 2020 (.pt, .pth, .bin): {CONVERT}"
    if beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") <= size - 8:
        return f"a safetensors file: {CONVERT}"
    if beginning[4:8] == b"TFL3":
        return f"a TensorFlow Lite model: {CONVERT}"
    if beginning[257:262] == b"ustar":
        return f"a tar archive: {UNPACK}"
    if beginning[:1] == b"\x08" and re.search(b"pytorch|onnx", beginning[:64]):
        return f"an ONNX model: {CONVERT}"
    if beginning[:1] == b"\n" and b"\n\x05<unk>" in beginning[:32]:
        return "a tokenizer of SentencePiece's (.model), which is no model of language"
    if beginning[12:17] == b"<unk>":
        return TOKENIZER_BIN
    if not any(beginning):
        return "a file that begins with zeros: room was made for it, and the download has not come that far"
    return _kind_of_text(beginning)


def incomplete(name: str) -> str | None:
    """Say what is missing of a file by its name alone, in words that go on after "by its name this is"."""
    if re.search(ONE_OF_SEVERAL, name):
        return "one part of several, which must be joined first"
    if re.search(UNFINISHED, name):
        return "a download that has not come to its end"
    return None


def _kind_of_text(beginning: bytes) -> str | None:
    """What kind of text this is, if it is one."""
    if beginning[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "a text (UTF-16)"
    start = beginning.removeprefix(codecs.BOM_UTF8).lstrip()[:100].lower()
    if re.match(b"<!doctype html|<html|<head|<body|<!--", start):
        return "a web page (HTML), saved in the file's place: take the link that downloads the file itself"
    if start.startswith(b"<?xml"):
        return "an XML text, such as servers answer with when something is wrong"
    try:  # the last character may be cut in two
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(beginning)
    except UnicodeDecodeError:
        return None
    if re.search(r"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]", text):
        return None
    kind = "a JSON text, such as config.json" if re.match(rb'\{\s*["}]|\[', start) else "a text"
    return f"{kind}; it begins: {short_text(text, longest=40)}"
