"""The benchmark's models: real ones, and seeded random weights in well-known shapes; the same numbers for every engine.

Each is a folder: ``model.gguf`` for Fabella and llama.cpp, ``plain.bin`` (Config, then f32) for the yardstick REF
(none for Q4_1), ``onnx/`` for ONNX Runtime (none for F32), and the prompt as ``prompt.json`` {"ids", "text"} and
``prompt.bin`` (int32 ids).
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from builder.models import KNOWN, fetch
from builder.tools import CACHE, WEB, digest, scratch
from fabella.architectures import expected_shapes
from fabella.gguf import read_gguf, write_gguf
from fabella.modelfile import Config
from fabella.sources import FileSource
from fabella.tokenizer import Tokenizer
from train.quantize import quantize, read_weights

from .onnx_llama import write_onnx

PROMPT_TOKENS = 128
BOS, EOS = 1, 2
FIRST_CHARACTER = 3 + 256  # after <unk>, <s>, </s> and the bytes, which llama.cpp asks for

# Bytes of a weight as wasm/matrix.h packs it: in groups of 32, with a float scale and in Q4_1 a float minimum.
PACKED_BYTES = {"F32": 4.0, "Q8_0": (32 + 4) / 32, "Q4_0": (16 + 4) / 32, "Q4_1": (16 + 8) / 32}

# Blocks of characters, so that each token of a random model is one character and a prompt's text is its tokens.
ALPHABET = [(0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x20000, 0x2A6DF)]

# The shipped model goes on from its first 128 tokens for longer than the benchmark asks.
STORY = """Once upon a time, there was a little mouse who lived under an old apple tree. Every morning she ran to the
river to look at the boats. One day a small red boat came by with nobody in it. The mouse was very brave, so she jumped
in and held the rope. The wind blew and the boat went far away, past the farm and the big bridge. "Where are we going?"
she asked, but there was no one to answer. At night the stars came out and she counted them until she fell asleep. In
the morning she saw a green island with a tall tower, and on the tower a bird was singing a sweet song. The bird looked
down and said, "Hello, little mouse! You have come a long way. Would you like some breakfast?" """


@dataclass(frozen=True)
class Model:
    """One of the benchmark's models.

    Attributes
    ----------
    source
        The shape of a random one, or where the file of a real one is.
    type
        How its matrices are stored, or most of them.
    tokens
        How many are computed one by one after the prompt.
    """

    source: Config | Callable[[], Path]
    type: str
    tokens: int

    @property
    def is_real(self) -> bool:
        return not isinstance(self.source, Config)

    def file(self) -> Path:
        """The file of a real one."""
        assert not isinstance(self.source, Config)
        return self.source()


def _shape(dim: int, hidden_dim: int, n_layers: int, n_heads: int, n_kv_heads: int, vocab_size: int, seq_len: int,
           rope_base: float = 10000.0) -> Config:  # fmt: skip
    return Config(dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, rope_base)


SHAPES = {
    "260K": _shape(64, 172, 5, 8, 4, 512, 512),
    "15M": _shape(288, 768, 6, 6, 6, 32000, 256),
    "42M": _shape(512, 1376, 8, 8, 8, 32000, 1024),
    "110M": _shape(768, 2048, 12, 12, 12, 32000, 1024),
}

MODELS = {
    "260K-F32": Model(SHAPES["260K"], "F32", 380),
    "stories-Q4_0": Model(lambda: WEB / "models/stories.gguf", "Q4_0", 120),
    "15M-F32": Model(SHAPES["15M"], "F32", 120),
    "15M-Q8_0": Model(SHAPES["15M"], "Q8_0", 120),
    "42M-Q8_0": Model(SHAPES["42M"], "Q8_0", 120),
    "110M-Q8_0": Model(SHAPES["110M"], "Q8_0", 48),
    "SmolLM2-Q4_1": Model(lambda: fetch(KNOWN["smollm2"]), "Q4_1", 48),
}
QUICK = ("260K-F32", "15M-Q8_0")


def packed_bytes(model: Model) -> int:
    """Bytes of packed weights that one token reads: all matrices; the embedding is the output matrix too."""
    if isinstance(model.source, Config):
        shapes = [(shape, model.type) for shape in expected_shapes(model.source).values()]
    else:
        with FileSource(model.file()) as source:
            shapes = [(tensor.shape, tensor.type) for tensor in read_gguf(source).tensors.values()]
    return int(sum(math.prod(shape) * PACKED_BYTES[type] for shape, type in shapes if len(shape) == 2))


def make_model(name: str) -> Path:
    """The folder of a model, made unless an earlier run has."""
    model = MODELS[name]
    sources = [Path(__file__), Path(__file__).with_name("onnx_llama.py")]
    which = digest(model.file()) if model.is_real else repr(model)
    folder = CACHE / f"bench-{name}-{digest(which, str(model.tokens), *sources)}"
    if not folder.exists():
        for old in CACHE.glob(f"bench-{name}-*"):
            shutil.rmtree(old)
        with scratch(CACHE) as unfinished:
            _write_all(model, unfinished / name)
            (unfinished / name).rename(folder)
    return folder


def _write_all(model: Model, folder: Path) -> None:
    folder.mkdir()
    gguf = folder / "model.gguf"
    if isinstance(model.source, Config):
        write_random_gguf(gguf, model.source, model.type)
    else:
        shutil.copyfile(model.file(), gguf)
    with FileSource(gguf) as source:
        read = read_gguf(source)
        weights = {name: read_weights(source, tensor) for name, tensor in read.tensors.items()}
    ids, text = story_prompt(read.tokenizer) if model.is_real else prompt(read.config, read.tokenizer)
    (folder / "prompt.json").write_text(json.dumps({"ids": ids, "text": text}), encoding="utf-8")
    (folder / "prompt.bin").write_bytes(np.array(ids, "<i4").tobytes())
    if model.type != "Q4_1":
        write_plain(folder / "plain.bin", read.config, weights)
    if model.type != "F32":
        write_onnx(folder / "onnx", read.config, weights)


# ---- GGUF ------------------------------------------------------------------------------------------------------------


def pieces(vocab_size: int) -> list[str]:
    """The vocabulary of a random model."""
    characters = [chr(code) for first, last in ALPHABET for code in range(first, last + 1)]
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters][:vocab_size]


def write_random_gguf(path: Path, config: Config, type: str, seed: int = 0) -> None:
    """Write a tied model whose likeliest token is always a character: no story ends early, or in half a character."""
    metadata = {
        "general.architecture": "llama",
        "general.name": f"random {type}",
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.block_count": config.n_layers,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.context_length": config.seq_len,
        "llama.rope.dimension_count": config.head_size,
        "llama.rope.freq_base": config.rope_base,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces(config.vocab_size),
        "tokenizer.ggml.scores": [-float(i) for i in range(config.vocab_size)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (config.vocab_size - FIRST_CHARACTER),
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }
    tensors: list[tuple[str, str, tuple[int, ...], bytes]] = []
    for name, shape in expected_shapes(config).items():
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if len(shape) == 1:
            tensors.append((name, "F32", shape, random.uniform(0.5, 1.5, shape).astype("<f4").tobytes()))
            continue
        values = random.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[1]))
        if name == "token_embd.weight":
            values[:FIRST_CHARACTER] *= np.float32(0.01)
        tensors.append((name, type, shape, quantize(values, type)))
    write_gguf(path, metadata, tensors)


def prompt(config: Config, tokenizer: Tokenizer) -> tuple[list[int], str]:
    """Random token ids, BOS first, and the text that every engine's tokenizer turns into them."""
    random = np.random.default_rng(1)
    ids = [BOS, *random.integers(FIRST_CHARACTER, config.vocab_size, PROMPT_TOKENS - 1).tolist()]
    text = "".join(tokenizer.pieces[i] for i in ids[1:])
    assert tokenizer.encode(text) == ids
    return ids, text


def story_prompt(tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The beginning of a story, in whole words, that is as many tokens long as the random prompts are."""
    story = " ".join(STORY.split())
    for end in (at for at, character in enumerate(story) if character == " "):
        ids = tokenizer.encode(story[:end])
        if len(ids) == PROMPT_TOKENS:
            return ids, story[:end]
    raise ValueError(f"no words at the beginning of the story are {PROMPT_TOKENS} tokens")


# ---- Plain float32 ---------------------------------------------------------------------------------------------------


def write_plain(path: Path, config: Config, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Write what plain.c reads: its Config, then all weights in the order in which a token passes them."""
    layer = "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_up ffn_down".split()
    names = ["token_embd.weight"]
    names += [f"blk.{number}.{name}.weight" for number in range(config.n_layers) for name in layer]
    names += ["output_norm.weight"] + (["output.weight"] if "output.weight" in weights else [])
    sizes = (config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads, config.vocab_size)
    tied = "output.weight" not in weights
    # The context is the benchmark's: the model's own would only be zeros.
    with path.open("wb") as file:
        file.write(struct.pack("<8i2f", *sizes, 512, tied, config.rope_base, config.norm_eps))
        for name in names:
            file.write(weights[name].astype("<f4").tobytes())
