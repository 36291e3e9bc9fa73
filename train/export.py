"""Between PyTorch and the one model file (GGUF): writes a trained model for the page, and reads one back.

    python -m train.export out/stories -o stories.gguf

A matrix is stored as Q8_0, about a byte per weight, or as F32; norms are F32 in both. The tokenizer, the context, what
the model was trained on and its licence go into the file, so that it stands alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from fabella import tokenizer as pieces
from fabella.errors import FabellaError
from fabella.gguf import read_gguf, write_gguf
from fabella.modelfile import FileSource, ModelFile
from fabella.tokenizer import Tokenizer

from .checkpoint import Checkpoint
from .model import Llama, ModelConfig
from .tokenizer import load_tokenizer

GROUP = 32  # Q8_0: this many weights share one scale
FILE_TYPES = {"F32": 0, "Q8_0": 7}  # general.file_type


def quantize_q8_0(weights: NDArray[np.float32]) -> bytes:
    """Store a matrix [rows, columns] in 8 bits a weight: for each 32 of a row an F16 scale and 32 int8.

    The scale is the group's largest absolute value / 127, as in llama.cpp. Weights are divided by the scale as it is
    stored, rounded to F16 (llama.cpp: as it was before), so that the two roundings do not add up: no weight is off by
    more than half a step.

    Raises ``ValueError`` if the columns are no multiple of 32 or a weight is not finite or too large for F16 scales.
    """
    if weights.shape[-1] % GROUP:
        raise ValueError(f"Q8_0 needs rows of a multiple of {GROUP} weights, not {weights.shape[-1]}; export as F32")
    groups = np.asarray(weights, dtype=np.float32).reshape(-1, GROUP)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = (np.abs(groups).max(axis=1) / np.float32(127)).astype("<f2")  # [groups]
    if not np.isfinite(scales).all():
        raise ValueError("a weight is not a number, or too large for Q8_0")
    divisors = np.where(scales == 0, 1, scales).astype(np.float32)[:, None]  # a scale of 0: nothing to tell apart
    numbers = np.where(scales[:, None] == 0, 0, np.clip(np.rint(groups / divisors), -127, 127))
    blocks = np.empty(len(groups), dtype=[("scale", "<f2"), ("numbers", "i1", GROUP)])
    blocks["scale"], blocks["numbers"] = scales, numbers
    return blocks.tobytes()


def dequantize_q8_0(data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The F32 weights that ``quantize_q8_0`` stored: scale x number, in ``shape``."""
    blocks = np.frombuffer(data, dtype=[("scale", "<f2"), ("numbers", "i1", GROUP)])
    weights = blocks["scale"].astype(np.float32)[:, None] * blocks["numbers"].astype(np.float32)
    return weights.reshape(shape)


def as_tokenizer(trained: SentencePieceProcessor) -> Tokenizer:
    """The product's own tokenizer with the vocabulary of a SentencePiece model."""
    ids = range(trained.vocab_size())

    def type_of(id: int) -> int:
        if trained.is_unknown(id):
            return pieces.UNKNOWN
        if trained.is_control(id):
            return pieces.CONTROL
        return pieces.BYTE if trained.is_byte(id) else pieces.NORMAL

    return Tokenizer(
        [trained.id_to_piece(id) for id in ids],
        [trained.get_score(id) for id in ids],
        [type_of(id) for id in ids],
        bos_id=trained.bos_id(),
        eos_id=trained.eos_id(),
        unknown_id=trained.unk_id(),
    )


def describe(config: ModelConfig, tokenizer: Tokenizer, about: dict[str, Any]) -> dict[str, Any]:
    """The file's metadata: ``about`` (general.*), the model's numbers, the vocabulary."""
    return {
        "general.architecture": "llama",
        **about,
        "general.quantization_version": 2,
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.seq_len,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.block_count": config.n_layers,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_base,
        "llama.rope.dimension_count": config.head_size,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokenizer.pieces,
        "tokenizer.ggml.scores": tokenizer.scores,
        "tokenizer.ggml.token_type": tokenizer.types,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.unknown_token_id": tokenizer.unknown_id,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }


def save_gguf(model: Llama, tokenizer: Tokenizer, path: Path, format: str, about: dict[str, Any]) -> None:
    """Write ``model`` as GGUF with its matrices in ``format``, "F32" or "Q8_0".

    Raises ``ValueError`` if a matrix cannot be stored so.
    """
    tensors = []
    for name, parameter in model.state_dict().items():  # the names are GGUF's already
        weights = parameter.float().cpu().numpy()
        if format == "Q8_0" and weights.ndim == 2:
            tensors.append((name, "Q8_0", weights.shape, quantize_q8_0(weights)))
        else:
            tensors.append((name, "F32", weights.shape, weights.astype("<f4").tobytes()))
    about = {**about, "general.file_type": FILE_TYPES[format]}
    temporary = path.with_name(path.name + ".tmp")
    write_gguf(temporary, describe(model.config, tokenizer, about), tensors)
    temporary.replace(path)


def load_gguf(path: Path) -> tuple[Llama, ModelFile]:
    """Build the model from a GGUF file, its weights dequantised, and return it with what the file says.

    Raises ``FabellaError`` (a ``ModelFileError`` that names the field) if the file is not a usable model.
    """
    with FileSource(path) as source:
        file = read_gguf(source)
        config = ModelConfig(**vars(file.config), tied="output.weight" not in file.tensors)
        weights = {}
        for tensor in file.tensors.values():
            data = source.read(tensor.offset, tensor.size)
            if tensor.type == "Q8_0":
                array = dequantize_q8_0(data, tensor.shape)
            else:
                array = np.frombuffer(data, dtype="<f4").reshape(tensor.shape)
            weights[tensor.name] = torch.from_numpy(array.astype(np.float32))
    model = Llama(config)
    model.load_state_dict(weights)
    return model.eval(), file


def load_model(path: Path) -> tuple[Llama, Tokenizer]:
    """The model and tokenizer of a run folder or of a GGUF file."""
    if path.is_dir():
        return Checkpoint.load(path).build_model(), as_tokenizer(load_tokenizer(path / "tokenizer.model"))
    model, file = load_gguf(path)
    return model, file.tokenizer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.export",
        description="Write a trained model as one GGUF file, for the page and for any program that reads GGUF.",
    )
    parser.add_argument("run", type=Path, help="the --out folder of train.train")
    parser.add_argument("-o", dest="output", metavar="FILE", type=Path, required=True, help="file to write")
    parser.add_argument("--format", choices=FILE_TYPES, default="Q8_0", help="of the matrices (default: Q8_0)")
    parser.add_argument("--name", help="what the model calls itself (default: the folder's name)")
    parser.add_argument("--license", help="of the model, an SPDX name; the training text's licence may decide it")
    parser.add_argument("--data", help="what it was trained on, in words (default: the text's file name)")
    options = parser.parse_args()
    try:
        run = Checkpoint.load(options.run)
        about: dict[str, Any] = {"general.name": options.name or options.run.resolve().name}
        if options.license:
            about["general.license"] = options.license
        about["general.datasets"] = [options.data or Path(run.options["text"]).name]
        about["fabella.training.tokens"] = run.tokens
        if run.bits_per_byte is not None:
            about["fabella.training.bits_per_byte"] = run.bits_per_byte
        tokenizer = as_tokenizer(load_tokenizer(options.run / "tokenizer.model"))
        save_gguf(run.build_model(), tokenizer, options.output, options.format, about)
    except (OSError, ValueError, FabellaError) as error:
        sys.exit(f"export: {error}")
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
