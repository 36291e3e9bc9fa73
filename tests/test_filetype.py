"""What is no model is named: by its first bytes, by its name, and by every reader."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import pickle
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fabella.errors import FabellaError, ModelFileError
from fabella.filetype import BEGINNING, incomplete, what_is
from fabella.gguf import read_gguf
from fabella.llama2c import is_llama2c, read_llama2c
from fabella.modelfile import Config
from fabella.models import open_model
from fabella.sources import BytesSource, FileSource

from .llama2c_files import later_bin, model_bin, tokenizer_bin
from .random_models import write_random_model

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 26214400\n"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", b"x")
    return file.getvalue()


def saved(old: bool) -> bytes:
    """A model as torch.save writes it, now or before 2020."""
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"))
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


HEADER = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()

OTHERS = {
    "lfs": (LFS, "pointer of Git LFS"),
    "page": (b"<!doctype html>\n<html><head><title>model</title></head></html>\n" * 20, "web page"),
    "page with a mark": (b"\xef\xbb\xbf\n\n  <HTML lang='en'>", "web page"),
    "page in Chinese": ("<!DOCTYPE html><title>模型".encode("gbk"), "web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
    "torch.save": (saved(old=False), "zip archive, as torch.save"),
    "old torch.save": (saved(old=True), "pickle"),
    "pickle": (pickle.dumps({"a": [1, 2, 3]}), "pickle"),
    "zip": (zipped(), "zip archive"),
    "empty zip": (b"PK\5\6" + bytes(18), "empty zip"),
    "gzip": (gzip.compress(b"GGUF"), "gzip"),
    "xz": (lzma.compress(b"GGUF"), "xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(9), "zstd"),
    "tar": (tarred(), "tar archive"),
    "npy": (npy(), "NumPy"),
    "safetensors": (struct.pack("<Q", len(HEADER)) + HEADER + bytes(4), "safetensors"),
    **{letters: (letters.encode() + bytes(100), "before GGUF") for letters in ("ggml", "lmgg", "fmgg", "tjgg", "algg")},
    "sentencepiece": (b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2" + bytes(50), "SentencePiece"),
    "tokenizer.bin": (tokenizer_bin(), "tokenizer.bin"),
    "config.json": (b'{\n  "architectures": ["LlamaForCausalLM"]\n}', "JSON"),
    "list": (b'[{"a": 1}]', "JSON"),
    "text": (
        "Es war einmal ein Mädchen.\n".encode() * 40,
        "a text; it begins: Es war einmal ein Mädchen. Es war einma…",
    ),
    "answer": (b"Entry not found", "a text; it begins: Entry not found"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:" + bytes(range(200)), "ONNX"),
    "beside": (b"\0\5\x16\7\0\2\0\0Mac OS X        ", "AppleDouble"),
    "llamafile": (b"MZqFpD='\n\n\0\x10\0\xf8" + bytes(50), "program"),
    "UTF-16": ("Once upon a time".encode("utf-16"), "UTF-16"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
    "png": (b"\x89PNG\r\n\x1a\n", "PNG"),
    "program": (b"\x7fELF\2\1\1" + bytes(50), "program"),
    "wasm": (b"\0asm\1\0\0\0" + bytes(50), "WebAssembly"),
    "empty": (b"", "of 0 bytes: the download may be incomplete"),
    "zeros": (bytes(10_000), "begins with zeros"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_each_reader_says_what_else_a_file_is(kind: str, tmp_path: Path) -> None:
    data, words = OTHERS[kind]
    assert words in (what_is(data[:BEGINNING], len(data)) or "")
    assert not is_llama2c(BytesSource(data))
    with pytest.raises(ModelFileError, match=re.escape(words)) as caught:
        read_gguf(BytesSource(data))
    assert caught.value.field == "magic"
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(FabellaError) as refused, open_model(path):
        pass
    assert str(refused.value).startswith(f"{path}: magic: this is not a GGUF model but")
    assert "-z" not in str(refused.value)


@pytest.mark.parametrize("kind", [kind for kind, (data, _) in OTHERS.items() if len(data) >= 28])
def test_with_a_tokenizer_too(kind: str) -> None:
    """As a model of llama2.c's, and as its tokenizer; the oldest version says nothing of what it is."""
    data, words = OTHERS[kind]
    with pytest.raises(ModelFileError, match=re.escape(words)):
        read_llama2c(BytesSource(data), BytesSource(tokenizer_bin()))
    if kind != "tokenizer.bin":
        with pytest.raises(ModelFileError, match=re.escape(words)) as caught:
            read_llama2c(BytesSource(model_bin()), BytesSource(data))
        assert caught.value.field == "tokenizer"


@pytest.mark.parametrize("dim", [16, 128, 640, 896, 1152, 1408])
def test_a_llama2c_model_is_nothing_else(dim: int) -> None:
    """640, 896, 1152 and 1408 begin with the two bytes of a pickle."""
    header = struct.pack("<7i", dim, 4 * dim, 8, 8, 8, 32000, 1024)
    assert what_is(header + b"\x3c" * 500, 1 << 20) is None
    assert is_llama2c(BytesSource(header))


def test_each_model_is_opened(tmp_path: Path) -> None:
    config = Config(dim=8, hidden_dim=12, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=7, seq_len=5)
    gguf, tokenizer = write_random_model(tmp_path / "model.gguf", config), tmp_path / "tokenizer.bin"
    tokenizer.write_bytes(tokenizer_bin())
    with open_model(gguf) as (model, source):
        assert (model.name, source.size) == ("random 0", gguf.stat().st_size)
    with pytest.raises(FabellaError, match="a GGUF file has its own; leave --tokenizer out"):
        open_model(gguf, tokenizer, "--tokenizer").__enter__()
    for data in (model_bin(), later_bin(1), later_bin(2)):
        path = tmp_path / "model.bin"
        path.write_bytes(data)
        with open_model(path, tokenizer) as (model, _):
            assert model.config.vocab_size == 7
        with pytest.raises(FabellaError, match="needs -z as well"), open_model(path):
            pass


def test_what_is_found_later_names_the_file_too(tmp_path: Path) -> None:
    config = Config(dim=8, hidden_dim=12, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=7, seq_len=5)
    path = write_random_model(tmp_path / "model.gguf", config)
    with pytest.raises(FabellaError, match=r"model\.gguf: x: broken"), open_model(path):
        raise ModelFileError("x", "broken")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model-00002-of-00003.gguf", "one part of several"),
        ("model.gguf.part1of2", "one part of several"),
        ("model.gguf.part", "not come to its end"),
        ("Unconfirmed 123.crdownload", "not come to its end"),
        ("model.gguf", None),
        ("part.gguf", None),
    ],
)
def test_names_that_say_something(name: str, words: str | None, tmp_path: Path) -> None:
    assert (words or "None") in str(incomplete(name))
    path = tmp_path / name
    path.write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(FabellaError) as caught, open_model(path):
        pass
    assert ("by its name this is" in str(caught.value)) == (words is not None)


def test_a_folder_and_a_device(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="this is a folder; name the file in it"):
        FileSource(tmp_path)
    with pytest.raises(OSError, match="this is a pipe or a device"):
        FileSource("/dev/null")


@settings(max_examples=500)
@given(data=st.binary(max_size=700), start=st.sampled_from([b"", *(data[:12] for data, _ in OTHERS.values())]))
def test_any_bytes_at_all(data: bytes, start: bytes) -> None:
    """Nothing but words comes of them."""
    data = start + data
    assert isinstance(what_is(data[:BEGINNING], len(data)), str | None)
    for read in (
        lambda: read_gguf(BytesSource(data)),
        lambda: read_llama2c(BytesSource(data), BytesSource(tokenizer_bin())),
        lambda: read_llama2c(BytesSource(model_bin()), BytesSource(data)),
    ):
        with pytest.raises(FabellaError) as caught:
            read()
        assert str(caught.value).isprintable()
