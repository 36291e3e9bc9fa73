"""Reads weights as Meta publishes them (consolidated.00.pth … with params.json) and llama2.c's checkpoints (ckpt.pt).

Both name their tensors in the same way and have RoPE's pairs side by side, as GGUF's "llama" has. A large model is in
several files, each with a part of every matrix, which one computer computed: of some the rows follow each other, of
others the columns. PyTorch reads the files (without running what is in them, and as a map of the disk, not into memory)
and checks that every tensor is within its file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fabella.architectures import DIVISORS
from fabella.config import LARGEST, Config, check_whole
from fabella.errors import FabellaError, ModelFileError, short_text
from fabella.filetype import BEGINNING, what_is
from fabella.gguf import describe
from fabella.metadata import get

from . import explain
from .checkpoint import unpack
from .huggingface import llama3_divisors
from .portable import Portable, Weights
from .safetensors_folder import read_json
from .tokenizer_model import read_tokenizer_file

PARAMS = "params.json"
PARTS = "consolidated.*.pth"
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
NAMES = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
BY_COLUMNS = ("attn_output", "ffn_down")  # whose parts are columns; of the other matrices they are rows
COMPUTED = ("rope.freqs", "freqs_cos", "freqs_sin")  # what older files have of RoPE
# Fields of params.json, and of what llama2.c's checkpoints have in its place.
PARAMETERS = set(
    """
    dim n_layers n_heads n_kv_heads vocab_size multiple_of ffn_dim_multiplier norm_eps rope_theta use_scaled_rope
    rope_scaling_factor max_seq_len max_batch_size hidden_dim dropout
    """.split()
)
ROPE_THETA, NORM_EPS = 10000.0, 1e-5
# How Llama 3.1 scales RoPE: turns in the context of Llama 3 below and above which angles are divided or stay.
SCALED_CONTEXT, LOW, HIGH = 8192, 1.0, 4.0


@contextmanager
def open_meta(folder: Path, tokenizer: Path | None) -> Iterator[Portable]:
    """Open a model of Meta's; its weights can be read until the ``with`` statement ends.

    Parameters
    ----------
    folder
        With params.json and consolidated.00.pth, 01, ….
    tokenizer
        tokenizer.model; None for the one in the folder or in that above it.

    Raises
    ------
    FabellaError
        A file is missing or damaged. A ``ModelFileError`` names the field or tensor.
    """
    params = read_json(folder / PARAMS)
    paths = sorted(folder.glob(PARTS))
    if [path.name for path in paths] != [f"consolidated.{number:02d}.pth" for number in range(len(paths))] or not paths:
        raise FabellaError(f"{folder}: its weights must be consolidated.00.pth, consolidated.01.pth and so on")
    parts = [_load(path) for path in paths]
    found = [tokenizer] if tokenizer else [folder / "tokenizer.model", folder.parent / "tokenizer.model"]
    yield _model(parts, params, found, folder.resolve().name)


@contextmanager
def open_checkpoint(path: Path, tokenizer: Path | None) -> Iterator[Portable]:
    """Open a checkpoint of llama2.c's train.py, which is used like `open_meta`."""
    checkpoint = _load(path)
    params, weights = (checkpoint.get(name) for name in ("model_args", "model"))
    if not (isinstance(params, dict) and isinstance(weights, dict)) or not all(
        isinstance(name, str) for name in (*params, *weights)
    ):
        raise FabellaError(f"{path}: is no checkpoint of llama2.c's: model and model_args are not in it")
    found = [tokenizer] if tokenizer else [path.parent / name for name in ("tokenizer.model", "tokenizer.bin")]
    yield _model([weights], params, found, path.stem)


def _load(path: Path) -> dict[str, Any]:
    """What torch.save has written, with tensors that stay on the disk until they are read."""
    try:
        return unpack(path, path)
    except ValueError as error:
        with path.open("rb") as file:
            other = what_is(file.read(BEGINNING), path.stat().st_size)
        if other and "zip archive" not in other:
            raise FabellaError(f"{path}: is {other}") from None
        raise FabellaError(str(error)) from None


def _model(parts: list[dict[str, Any]], params: Mapping[str, Any], tokenizers: list[Path], name: str) -> Portable:
    for key, value in params.items():
        if key not in PARAMETERS:
            raise ModelFileError(
                key,
                f"is {short_text(repr(value), 40)}, and is not known here: it may change what the model computes. If "
                f"it does not, take it out of {PARAMS}",
            )
    tensors = _tensors(parts)
    for needed in ("token_embd.weight", "blk.0.ffn_gate.weight"):
        if needed not in tensors:
            raise ModelFileError(needed, "this tensor is missing from the file")
    tied = "output.weight" not in tensors or _is_same(parts, "output.weight", "tok_embeddings.weight")
    if tied:
        tensors.pop("output.weight", None)
    rows, hidden = tensors["token_embd.weight"].shape[0], tensors["blk.0.ffn_gate.weight"].shape[0]
    theta = get(params, "rope_theta", float, default=ROPE_THETA)
    notes: list[str] = []
    config = Config(
        dim=get(params, "dim", int),
        hidden_dim=hidden,
        n_layers=get(params, "n_layers", int),
        n_heads=get(params, "n_heads", int),
        n_kv_heads=params.get("n_kv_heads") or get(params, "n_heads", int),
        vocab_size=rows,
        seq_len=_context(params, theta, notes),
        rope_base=theta,
        norm_eps=get(params, "norm_eps", float, default=NORM_EPS),
        tied=tied,
    )
    if get(params, "vocab_size", int, default=rows) not in (-1, rows):  # -1: as the tokenizer has
        raise ModelFileError("vocab_size", f"is {params['vocab_size']}, but the embedding has {rows} rows")
    if params.get("use_scaled_rope"):
        divisors = _divisors(params, config)
        tensors[DIVISORS] = Weights("F32", divisors.shape, lambda: divisors.astype(np.float32))
    path = next((path for path in tokenizers if path.is_file()), None)
    if path is None:
        raise FabellaError(f"{tokenizers[0]}: no such tokenizer; --tokenizer says where it is")
    metadata = describe(config, read_tokenizer_file(path, rows), {"general.name": name})
    model = Portable(metadata, tensors, tuple(notes))
    model.config()
    return model


def _context(params: Mapping[str, Any], theta: float, notes: list[str]) -> int:
    if "max_seq_len" in params:
        length: int = get(params, "max_seq_len", int)
        check_whole("max_seq_len", length, 1, LARGEST["seq_len"])
        return length
    length = 131072 if params.get("use_scaled_rope") else 8192 if theta >= 500000 else 4096
    notes.append(
        f"{PARAMS} does not say how long a context the model was trained for: taken as {length}, as that of Llama "
        f"{'3.1' if length > 8192 else '3' if length > 4096 else '2'}; max_seq_len in it says otherwise"
    )
    return length


def _divisors(params: Mapping[str, Any], config: Config) -> np.ndarray[Any, Any]:
    if "rope_scaling_factor" not in params:
        raise ModelFileError(
            "use_scaled_rope",
            f"is true, but {PARAMS} does not say by how much: add rope_scaling_factor, which is 8 for Llama 3.1 and 32 "
            "for Llama 3.2",
        )
    factor: float = get(params, "rope_scaling_factor", float)
    if not 1 <= factor <= 1e6:
        raise ModelFileError("rope_scaling_factor", f"is {factor:g}, but must be from 1 to 1,000,000")
    return llama3_divisors(config.rope_base, config.head_size, factor, SCALED_CONTEXT, LOW, HIGH)


def _is_same(parts: list[dict[str, Any]], one: str, other: str) -> bool:
    """Whether two tensors are one: the same numbers in the same place of the file."""
    names = [{_plain(name): tensor for name, tensor in part.items()} for part in parts]
    return all(part[one].data_ptr() == part[other].data_ptr() for part in names)


def _plain(name: str) -> str:
    """A tensor's name without what torch.compile puts before it."""
    return name.removeprefix("_orig_mod.")


def _tensors(parts: list[dict[str, Any]]) -> dict[str, Weights]:
    """The tensors as GGUF has them."""
    tensors: dict[str, Weights] = {}
    norm = next((tensor for name, tensor in parts[0].items() if _plain(name) == "norm.weight"), None)
    if not isinstance(norm, torch.Tensor) or norm.ndim != 1:
        raise ModelFileError("norm.weight", "is missing from the file, or no vector")
    for name in parts[0]:
        plain = _plain(name)
        if plain in COMPUTED:
            continue
        found = re.fullmatch(r"(?:layers\.(\d+)\.)?([a-z0-9_.]+)\.weight", plain)
        part = NAMES.get(found[2]) if found else None
        if not found or part is None:
            raise ModelFileError(plain, "this tensor is not part of a Llama")
        full = f"blk.{found[1]}.{part}.weight" if found[1] else f"{part}.weight"
        if full in tensors:
            raise ModelFileError(name, f"is {full} in GGUF's words, and so is another tensor")
        tensors[full] = _joined(parts, name, part, len(norm))
    return tensors


def _joined(parts: list[dict[str, Any]], name: str, part: str, width: int) -> Weights:
    """A tensor of a model so wide, out of its parts in the files."""
    if not all(isinstance(of.get(name), torch.Tensor) for of in parts):
        raise ModelFileError(name, "is not in every one of the files, or no tensor")
    tensors: list[torch.Tensor] = [of[name] for of in parts]
    first = tensors[0]
    if first.dtype not in TYPES or first.ndim not in (1, 2) or 0 in first.shape:
        raise ModelFileError(
            name,
            f"is a tensor of {first.dtype} and shape {tuple(first.shape)}; only matrices and "
            f"vectors of {', '.join(TYPES.values())} are read",
        )
    if any(tensor.shape != first.shape or tensor.dtype != first.dtype for tensor in tensors):
        raise ModelFileError(name, "has parts of different shapes in the files")
    if not all(map(_is_whole, tensors)):
        raise ModelFileError(name, "is sparse, or has fewer numbers in the file than its shape says")
    if first.ndim == 1:  # a norm, which each computer had
        return Weights(TYPES[first.dtype], tuple(first.shape), lambda: first.float().numpy())
    # Llama 2 has its embedding in columns, Llama 3 in rows: a part that is as wide as the model has whole rows.
    by_columns = part in BY_COLUMNS or (part == "token_embd" and first.shape[1] != width)
    rows, columns = first.shape
    shape = (rows, columns * len(parts)) if by_columns else (rows * len(parts), columns)
    return Weights(
        TYPES[first.dtype], shape, lambda: torch.cat(tensors, dim=1 if by_columns else 0).float().contiguous().numpy()
    )


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether each number of a tensor has a place of its own in its file."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.itemsize


if __name__ == "__main__":
    explain(__doc__)
