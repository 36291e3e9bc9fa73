"""Import and export: the logits of transformers, the tokens of its tokenizers, the same bits there and back."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import pickle
import re
import shutil
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import sentencepiece
import tokenizers
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from fabella.bytelevel import CHARACTERS
from fabella.config import Config
from fabella.engine import Engine
from fabella.errors import FabellaError
from fabella.formats import FORMATS, STORED
from fabella.gguf import read_gguf
from fabella.hosts import WasmtimeHost
from fabella.llama2c import read_llama2c
from fabella.modelfile import ModelFile
from fabella.sampler import likeliest
from fabella.sources import FileSource
from fabella.tokenizer import Tokenizer
from train import convert as command
from train import train as training
from train.huggingface import open_huggingface
from train.load import load_gguf, load_model
from train.model import Llama
from train.portable import Portable, Weights, write_as_gguf
from train.quantize import read_weights
from train.tokenizer import train_tokenizer
from train.tokenizer_folder import write_tokenizer
from train.tokenizer_model import read_tokenizer_file

from . import families
from .llama2c_files import tokenizer_bin
from .llama_cpp import LlamaCpp
from .random_models import load, tokenizer
from .texts import CORPUS, hostile_text

TOKENS, GREEDY = 48, 24
TEXTS = [text for text in CORPUS if "<|im_start|>" not in text]  # whose special tokens transformers takes for such
SHARED = Path(__file__).parents[1] / ".." / "shared" / "models"


def convert(source: Path, output: Path, *more: str) -> Path:
    """Runs the command; an error is raised as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["convert", str(source), "-o", str(output), *more])
        command.convert(command.parse_arguments())
    return output


def refused(source: Path, output: Path, *more: str) -> str:
    """The words with which a conversion is refused; nothing is left of it."""
    before = sorted(output.parent.glob("*"))
    with pytest.raises((OSError, ValueError, FabellaError)) as caught:
        convert(source, output, *more)
    assert sorted(output.parent.glob("*")) == before
    return str(caught.value)


def save(model: Any, folder: Path, **more: Any) -> Path:
    """The model as transformers saves it, with a tokenizer of as many tokens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **more)
    write_tokenizer(tokenizer(families.VOCABULARY), folder, 256, None)
    return folder


def rewrite(path: Path, **changes: Any) -> None:
    """Changes fields of a JSON file; None takes one away."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def open_gguf(path: Path) -> ModelFile:
    with FileSource(path) as source:
        return read_gguf(source)


def weights_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """The tensors of a GGUF file, with their types."""
    with FileSource(path) as source:
        return {t.name: (t.type, source.read(t.offset, t.size)) for t in read_gguf(source).tensors.values()}


def logits_of(model: Any, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    with torch.no_grad():
        values: np.ndarray[Any, np.dtype[np.float32]] = model(torch.tensor([tokens])).logits[0].numpy()
    return values


def compare(model: Any, path: Path) -> list[int]:
    """Compares our engine with transformers: logits at each position, and what follows; returns it."""
    tokens = np.random.default_rng(2).integers(3, families.VOCABULARY, TOKENS).tolist()
    expected = logits_of(model, tokens)
    engine, _ = load(path)
    ours = np.array([engine.forward(token).to_array() for token in tokens])
    assert np.abs(ours - expected).max() < 1e-4
    for _ in range(GREEDY):
        tokens.append(likeliest(engine.logits))
        engine.forward(tokens[-1])
    theirs = logits_of(model, tokens).argmax(axis=1)[TOKENS - 1 : -1].tolist()
    assert tokens[TOKENS:] == theirs
    return theirs


# ---- Hugging Face folders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", families.MODELS)
def test_every_family_computes_as_in_transformers(name: str, tmp_path: Path) -> None:
    model = families.make(name)
    path = convert(save(model, tmp_path / "model"), tmp_path / "model.gguf")
    compare(model, path)
    expected = weights_of(families.write(model, tmp_path / "expected.gguf"))
    ours = weights_of(path)
    assert ours.keys() == expected.keys()
    for tensor in ours:
        assert ours[tensor] == expected[tensor] or "rope" in tensor, tensor
    theirs = gguf.GGUFReader(path)
    assert theirs.fields["general.architecture"].contents() == families.family_of(model)
    assert {t.name for t in theirs.tensors} == ours.keys() or "phi3" in name  # whose matrices are fused
    sizes = {t.name: math.prod(t.shape.tolist()) for t in theirs.tensors}
    assert sum(sizes.values()) == sum(len(data) // 4 for _, data in ours.values())


LLAMA_CPP = [name for name in families.MODELS if not name.startswith(("gemma", "mistral", "phi3 short"))]


def test_llama_cpp_says_the_same(tmp_path: Path) -> None:
    """Not of Gemma, whose GELU is a table of half precision there, nor of Mistral, whose window it leaves out.

    And of LongRoPE it takes the angles by the context that it is given, not by the model's own.
    """
    reference = LlamaCpp()
    for number, name in enumerate(LLAMA_CPP):
        model = families.make(name)
        path = convert(save(model, tmp_path / f"{number}"), tmp_path / f"{number}.gguf")
        tokens = np.random.default_rng(2).integers(3, families.VOCABULARY, TOKENS).tolist()
        engine, _ = load(path)
        engine.prefill(tokens)
        for token, lead in reference.greedy(path, tokens, GREEDY):
            assert likeliest(engine.logits) == token or lead < 1e-3, (name, token, lead)
            engine.forward(token)


def test_parts_are_the_same_model(tmp_path: Path) -> None:
    model = families.make("qwen3")
    whole = convert(save(model, tmp_path / "a/model"), tmp_path / "whole.gguf")
    parts = save(model, tmp_path / "b/model", max_shard_size="100KB")
    assert len(list(parts.glob("*.safetensors"))) > 3
    assert convert(parts, tmp_path / "parts.gguf").read_bytes() == whole.read_bytes()


# What older versions of transformers write in the place of rope_parameters.
OLDER: dict[str, dict[str, Any]] = {
    "llama 3.1": {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **families.LLAMA3}},
    "llama linear": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "gemma3": {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "layer_types": None, "sliding_window_pattern": 6},
    "qwen2": {"rope_theta": 1e6, "layer_types": None, "sliding_window": 4096},
    "phi3 long": {"rope_theta": 10000.0, "rope_scaling": {"type": "su", **families.LONG}},
}


@pytest.mark.parametrize("name", OLDER)
def test_older_files_say_the_same_in_other_words(name: str, tmp_path: Path) -> None:
    folder = save(families.make(name), tmp_path / "model")
    newer = convert(folder, tmp_path / "newer.gguf")
    rewrite(folder / "config.json", rope_parameters=None, torch_dtype="float32", **OLDER[name])
    older = convert(folder, tmp_path / "older.gguf")
    assert open_gguf(older).config == open_gguf(newer).config
    assert weights_of(older) == weights_of(newer)


def test_windows_of_qwen(tmp_path: Path) -> None:
    """The layers from max_window_layers on."""
    changes = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**(families.BASE | changes))).eval()
    path = convert(save(model, tmp_path / "model"), tmp_path / "model.gguf")
    assert open_gguf(path).config.windows == (0, 8, 8)
    compare(model, path)


@pytest.mark.parametrize("twice", [False, True])
def test_mobilellm(twice: bool, tmp_path: Path) -> None:
    """A Llama by another name, whose head is tied; in its LS models each layer runs twice in a row."""
    model = families.make("llama tied")
    folder = save(model, tmp_path / "model")
    about = {"auto_map": {"AutoConfig": "configuration_mobilellm.MobileLLMConfig"}, "tie_word_embeddings": False}
    rewrite(folder / "config.json", model_type="mobilellm", share_embedding=True, layer_sharing=twice, **about)
    path = convert(folder, tmp_path / "model.gguf")
    if twice:
        model.model.layers = torch.nn.ModuleList(copy.deepcopy(layer) for layer in model.model.layers for _ in range(2))
        for number, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = number
        model.config.num_hidden_layers *= 2
    compare(model, path)


# ---- Number formats --------------------------------------------------------------------------------------------------

WIDE = Config(dim=256, hidden_dim=512, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=320, seq_len=64, tied=False)


def wide(folder: Path) -> Path:
    torch.manual_seed(3)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "initializer_range": 0.06}
    return save(families.llama(**sizes).eval(), folder)


@pytest.mark.parametrize("format", STORED)
def test_every_format(format: str, tmp_path: Path) -> None:
    """The library gguf reads the same weights as we do, and they are near to those that were there."""
    folder = wide(tmp_path / "model")
    exact, path = convert(folder, tmp_path / "exact.gguf"), convert(folder, tmp_path / "a.gguf", "--format", format)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert gguf.GGUFReader(path).fields["general.file_type"].contents() == FORMATS[format].file_type
    with FileSource(path) as source, FileSource(exact) as origin:
        there, before = read_gguf(source), read_gguf(origin)
        for name, tensor in there.tensors.items():
            assert tensor.type == ("F32" if len(tensor.shape) == 1 else format)
            ours, original = read_weights(source, tensor), read_weights(origin, before.tensors[name])
            data = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type)
            assert np.array_equal(ours, data.reshape(ours.shape))
            off = np.sqrt(np.mean((ours - original) ** 2) / np.mean(original**2))
            assert off <= {"F32": 0, "F16": 3e-4, "BF16": 2e-3, "Q8_0": 6e-3, "Q6_K": 0.02}.get(format, 0.1)
    engine, _ = load(path)
    engine.forward(5)
    with_torch, _ = load_gguf(path)
    assert with_torch(torch.tensor([[5]])).isfinite().all()


def test_rows_that_do_not_fit_blocks_of_256(tmp_path: Path) -> None:
    folder = save(families.llama(hidden_size=64, intermediate_size=256).eval(), tmp_path / "model")
    for format, other in (("Q4_K", "Q5_0"), ("Q6_K", "Q8_0")):
        tensors = open_gguf(convert(folder, tmp_path / f"{format}.gguf", "--format", format)).tensors.values()
        assert {t.type for t in tensors if len(t.shape) == 2 and t.columns == 256} == {format}
        assert {t.type for t in tensors if len(t.shape) == 2 and t.columns == 64} == {other}


@pytest.mark.parametrize(("dtype", "type"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_numbers_stay_as_they_are(dtype: torch.dtype, type: str, tmp_path: Path) -> None:
    """There and back, bit by bit; the order of the rows of q and k, too."""
    model = families.make("llama").to(dtype)
    folder = save(model, tmp_path / "model")
    path = convert(folder, tmp_path / "model.gguf")
    assert {t.type for t in open_gguf(path).tensors.values() if len(t.shape) == 2} == {type}
    again = convert(path, tmp_path / "again", "--format", type)
    before, after = (safetensors.torch.load_file(f / "model.safetensors") for f in (folder, again))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == dtype
        assert torch.equal(tensor, after[name]), name
    assert weights_of(convert(again, tmp_path / "third.gguf")) == weights_of(path)


def test_weights_are_read_one_at_a_time(tmp_path: Path) -> None:
    shape, count = (1024, 256), 24
    size = 4 * math.prod(shape)
    names = [f"blk.{layer}.ffn_{part}.weight" for layer in range(count // 3) for part in ("gate", "up", "down")]
    tensors = {name: Weights("F32", shape, lambda: np.zeros(shape, np.float32)) for name in names}
    metadata: dict[str, Any] = {"general.architecture": "llama"}
    tracemalloc.start()
    try:
        with pytest.raises(FabellaError):  # it is no model; but it has been written
            write_as_gguf(Portable(metadata, tensors), tmp_path / "model.gguf", "Q8_0")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "model.gguf").stat().st_size > count * size // 4
    assert peak < 8 * size


# ---- Tokenizers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    train_tokenizer([text.replace("▁", "_") for text in TEXTS[:2] * 3 + TEXTS], 700, path)
    return path


def folder_with(tmp_path: Path, size: int, **tokenizer_config: Any) -> Path:
    """A folder of a small Llama with so many tokens, without a tokenizer."""
    folder = save(families.llama(vocab_size=size).eval(), tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def texts_agree(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    for text in texts:
        expected = theirs.encode(text).ids if isinstance(theirs, tokenizers.Tokenizer) else theirs.encode(text)
        assert ours.encode(text) == expected, text
        assert ours.decode(ours.encode(text, bos=False)) == text or "\u0301" in text  # which NFC composes


def test_sentencepiece_by_its_own_file(sentencepiece_model: Path, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, 704)
    shutil.copy(sentencepiece_model, folder / "tokenizer.model")
    (folder / "added_tokens.json").write_text(json.dumps({"<|user|>": 700, "wolpertinger": 701}))
    ours = open_gguf(convert(folder, tmp_path / "model.gguf")).tokenizer
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    for text in TEXTS:
        assert ours.encode(text) == [1, *reference.encode(text)]
    assert ours.encode("<|user|> a wolpertinger", bos=False, special=True)[0] == 700
    assert 701 in ours.encode("a wolpertinger")
    assert ours.pieces[702:] == ["[PAD702]", "[PAD703]"]


def test_sentencepiece_without_its_own_file(sentencepiece_model: Path, tmp_path: Path) -> None:
    """The scores follow from the merges; the tokens are those of both libraries."""
    folder = folder_with(tmp_path, 700)
    shutil.copy(sentencepiece_model, folder / "tokenizer.model")
    first = open_gguf(convert(folder, tmp_path / "first.gguf")).tokenizer
    write_tokenizer(first, folder, 256, None)
    (folder / "tokenizer.model").unlink()
    second = open_gguf(convert(folder, tmp_path / "second.gguf")).tokenizer
    assert (second.pieces, second.types, second.add_bos) == (first.pieces, first.types, first.add_bos)
    theirs = hf.AutoTokenizer.from_pretrained(folder)
    texts_agree(second, theirs, TEXTS)
    texts_agree(first, theirs, TEXTS)
    assert theirs.decode(theirs.encode(TEXTS[3]), skip_special_tokens=True) == TEXTS[3]
    # As the class of Llama's tokenizers writes it now: a step before the merges in place of a normaliser.
    vocab, merges = (json.loads((folder / "tokenizer.json").read_text())["model"][key] for key in ("vocab", "merges"))
    llama = hf.LlamaTokenizer(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges])
    llama.save_pretrained(folder)
    third = open_gguf(convert(folder, tmp_path / "third.gguf")).tokenizer
    texts_agree(third, llama, TEXTS)


LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[str, tuple[str, bool, bool]] = {  # the split, whether text is composed, whether whole words are taken
    "gpt-2": ("", False, False),
    "smollm": ("digits", False, False),
    "llama-bpe": (LLAMA3_SPLIT.replace("NUMBERS", r"\p{N}{1,3}"), False, True),
    "smaug-bpe": (LLAMA3_SPLIT.replace("NUMBERS", r"\p{N}{1,3}"), False, False),
    "qwen2": (LLAMA3_SPLIT.replace("NUMBERS", r"\p{N}"), True, False),
    "deepseek-r1-qwen": (LLAMA3_SPLIT.replace("NUMBERS", r"\p{N}"), False, False),
}


def byte_level(name: str) -> tokenizers.Tokenizer:
    """A tokenizer of 500 tokens, trained with the library."""
    split, composed, whole = SPLITS[name]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=whole))
    own = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in ("", "digits"))
    first: list[Any] = []
    if split == "digits":
        first = [tokenizers.pre_tokenizers.Digits(individual_digits=True)]
    elif split:
        first = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(split), "isolated")]
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*first, own]) if first else own
    made.normalizer = tokenizers.normalizers.NFC() if composed else None
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 2, trainer)
    made.add_tokens(["wolpertinger"])
    if name == "llama-bpe":
        made.post_processor = tokenizers.processors.TemplateProcessing("<|begin|> $A", None, [("<|begin|>", 0)])
    return made


@pytest.mark.parametrize("name", SPLITS)
def test_byte_level(name: str, tmp_path: Path) -> None:
    theirs = byte_level(name)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    folder = folder_with(tmp_path, 505, bos_token="<|begin|>", eos_token="<|end|>", chat_template=template)
    theirs.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}))
    file = open_gguf(convert(folder, tmp_path / "model.gguf"))
    assert file.metadata["tokenizer.ggml.pre"] == name
    assert file.chat_template == template
    assert file.tokenizer.stop_ids >= {1, 3}
    assert file.tokenizer.add_bos == (name == "llama-bpe")
    texts_agree(file.tokenizer, theirs, [*TEXTS, "a wolpertinger", "", "  x"])

    # And back: what transformers makes of what we write is the same tokenizer.
    again = convert(tmp_path / "model.gguf", tmp_path / "again")
    written = hf.AutoTokenizer.from_pretrained(again)
    texts_agree(file.tokenizer, written, [*TEXTS, "a wolpertinger"])
    assert written.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"
    assert open_gguf(convert(again, tmp_path / "third.gguf")).tokenizer.pieces == file.tokenizer.pieces


def test_any_text_has_the_same_tokens_in_a_folder(sentencepiece_model: Path, tmp_path: Path) -> None:
    ours = read_tokenizer_file(sentencepiece_model, 700)
    write_tokenizer(ours, tmp_path, 256, None)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    @settings(max_examples=150)
    @given(text=hostile_text())
    def agree(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text).ids

    agree()


def test_the_list_of_ranks_of_llama_3(tmp_path: Path) -> None:
    """Merges follow from the ranks: the tokens are those of the tokenizer whose ranks they are."""
    theirs = byte_level("llama-bpe")
    back = {character: byte for byte, character in CHARACTERS.items()}
    pieces = [
        bytes(back[c] for c in piece)
        for piece, _ in sorted(theirs.get_vocab().items(), key=lambda item: item[1])
        if piece not in ("<|begin|>", "<|end|>", "wolpertinger")
    ]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces)))
    ours = read_tokenizer_file(path, len(pieces) + 256)
    assert ours.pieces[len(pieces)] == "<|begin_of_text|>" == ours.pieces[ours.bos_id]
    assert ours.pieces[-1] == "<|reserved_special_token_247|>"
    assert ours.pieces[len(pieces) + 9] == "<|eot_id|>"
    for text in TEXTS:
        expected = [id - 2 for id in theirs.encode(text, add_special_tokens=False).ids]  # without the two at the front
        assert ours.encode(text, bos=False) == expected
    for damage in (b"!" + path.read_bytes(), path.read_bytes().replace(b" 7\n", b" 8\n"), path.read_bytes()[:200]):
        path.write_bytes(damage)
        with pytest.raises(FabellaError):
            read_tokenizer_file(path, len(pieces) + 256)


# ---- Meta's files and llama2.c's -------------------------------------------------------------------------------------

TINY = Config(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=320, seq_len=64, norm_eps=1e-5)
META = {
    "token_embd": "tok_embeddings",
    "output_norm": "norm",
    "output": "output",
    "attn_norm": "attention_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
}


def some_llama(config: Config = TINY) -> Llama:
    torch.manual_seed(4)
    model = Llama(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


ARGS = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 64}


def named_by_meta(model: Llama) -> dict[str, torch.Tensor]:
    names = {}
    for name, tensor in model.state_dict().items():
        *block, part, suffix = name.split(".")
        names[".".join([*(["layers", block[1]] if block else []), META[part], suffix])] = tensor
    if model.output is None:
        names["output.weight"] = names["tok_embeddings.weight"]
    return names


def some_tokenizer(path: Path, size: int = 320) -> Path:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    path.write_bytes(tokenizer_bin(pieces + [b" w%d" % number for number in range(size - len(pieces))]))
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_checkpoints(tied: bool, tmp_path: Path) -> None:
    model = some_llama(replace(TINY, tied=tied))
    some_tokenizer(tmp_path / "tokenizer.bin")
    sizes = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 320, "multiple_of": 32}
    weights = {f"_orig_mod.{name}": tensor for name, tensor in named_by_meta(model).items()}
    args = {**sizes, "max_seq_len": 64, "dropout": 0.0}
    torch.save({"model": weights, "model_args": args, "optimizer": {}, "iter_num": 5}, tmp_path / "ckpt.pt")
    again, file = load_gguf(convert(tmp_path / "ckpt.pt", tmp_path / "model.gguf"))
    assert file.config == replace(TINY, tied=tied, norm_eps=file.config.norm_eps)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("embedding", [0, 1])
def test_meta_in_one_part_and_several(parts: int, embedding: int, tmp_path: Path) -> None:
    """Llama 2 has its embedding cut along its columns, Llama 3 along its rows."""
    model = some_llama(replace(TINY, tied=False))
    folder = tmp_path / "meta"
    folder.mkdir()
    some_tokenizer(tmp_path / "tokenizer.bin")
    for number in range(parts):
        part = {}
        for name, tensor in named_by_meta(model).items():
            along = embedding if "tok_emb" in name else int(name.endswith(("wo.weight", "w2.weight")))
            part[name] = tensor.chunk(parts, along)[number].clone() if tensor.ndim == 2 else tensor
        torch.save(part | {"rope.freqs": torch.zeros(8)}, folder / f"consolidated.{number:02d}.pth")
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps({**params, "multiple_of": 32, "rope_theta": 500000.0}))
    more = ("--tokenizer", str(tmp_path / "tokenizer.bin"))
    again, file = load_gguf(convert(folder, tmp_path / "model.gguf", *more))
    assert (file.config.rope_base, file.config.seq_len) == (500000.0, 8192)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name

    # Llama 3.1's angles are those of transformers.
    rewrite(folder / "params.json", use_scaled_rope=True)
    assert "add rope_scaling_factor" in refused(folder, tmp_path / "scaled.gguf", *more)
    rewrite(folder / "params.json", rope_scaling_factor=8)
    file = open_gguf(convert(folder, tmp_path / "scaled.gguf", *more))
    with FileSource(tmp_path / "scaled.gguf") as source:
        divisors = read_weights(source, file.tensors["rope_freqs.weight"])
    longer = {**families.LLAMA3, "original_max_position_embeddings": 8192}
    plain, scaled = (
        hf.LlamaConfig(**families.BASE, rope_parameters=families.rope(500000.0, kind, **more))
        for kind, more in (("default", {}), ("llama3", longer))
    )
    angles_of = hf.models.llama.modeling_llama.LlamaRotaryEmbedding
    assert np.allclose(angles_of(plain).inv_freq.numpy() / divisors, angles_of(scaled).inv_freq.numpy(), rtol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_llama2c_there_and_back(version: int, tied: bool, tmp_path: Path) -> None:
    """GGUF to .bin and back is the same file, and so is .bin to GGUF and back."""
    config = replace(TINY, tied=tied)
    weights = named_by_meta(some_llama(config))
    if tied:
        del weights["output.weight"]
    some_tokenizer(tmp_path / "tokenizer.bin")
    args = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 64}
    torch.save({"model": weights, "model_args": args}, tmp_path / "model.pt")
    origin = convert(tmp_path / "model.pt", tmp_path / "model.gguf")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = convert(origin, tmp_path / "a/model.bin", "--version", str(version))
    assert (tmp_path / "a/tokenizer.bin").read_bytes() == (tmp_path / "tokenizer.bin").read_bytes()
    file = convert(first, tmp_path / "a/model.gguf")
    second = convert(file, tmp_path / "b/model.bin", "--version", str(version))
    assert second.read_bytes() == first.read_bytes()
    assert (tmp_path / "b/tokenizer.bin").read_bytes() == (tmp_path / "tokenizer.bin").read_bytes()
    assert convert(second, tmp_path / "b/model.gguf").read_bytes() == file.read_bytes()
    if version < 2:
        assert (weights_of(file), open_gguf(file).metadata) == (weights_of(origin), open_gguf(origin).metadata)
    with FileSource(first) as source, FileSource(tmp_path / "tokenizer.bin") as vocabulary:
        engine = Engine(WasmtimeHost(), read_llama2c(source, vocabulary), source)
    exact, _ = load(origin)
    off = np.abs(np.array(engine.forward(5).to_array()) - np.array(exact.forward(5).to_array())).max()
    assert off == 0 if version < 2 else off < 0.1


def test_the_files_of_llama2c_itself(tmp_path: Path) -> None:
    """Every byte, but for the tables of version 0, whose last bits are the machine's that made them."""
    if not (SHARED / "stories260K.bin").exists():
        pytest.skip("../shared/models is not there")
    given = ("--tokenizer", str(SHARED / "tok512.bin"))
    file = convert(SHARED / "stories260K.bin", tmp_path / "stories.gguf", *given)
    ours, theirs = (
        convert(file, tmp_path / "stories.bin", "--version", "0").read_bytes(),
        (SHARED / "stories260K.bin").read_bytes(),
    )
    assert len(ours) == len(theirs)
    one, other = (np.frombuffer(data[28:], "<f4") for data in (ours, theirs))
    assert np.flatnonzero(one != other).size == 0 or np.abs(one - other).max() < 1e-4
    assert (tmp_path / "tokenizer.bin").read_bytes() == (SHARED / "tok512.bin").read_bytes()


# ---- Our runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of train.train."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("".join(f"{text}\n<|endoftext|>\n" for text in TEXTS * 8))
    shape = "--vocab-size 700 --dim 32 --hidden-dim 64 --layers 2 --heads 4 --kv-heads 2 --context 64".split()
    more = "--batch-tokens 512 --no-compile --tokens 4096 --eval-every 50".split()
    arguments = [str(folder / "text.txt"), "--out", str(folder / "stories"), *shape, *more]
    training.train(training.parse_arguments(arguments))
    return folder / "stories"


def test_a_run_in_transformers(run: Path, tmp_path: Path) -> None:
    folder = convert(run, tmp_path / "stories")
    model, theirs = hf.AutoModelForCausalLM.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
    checkpoint, ours = load_model(run)
    texts_agree(ours, theirs, TEXTS)
    tokens = theirs.encode(TEXTS[0], return_tensors="pt")[:, :60]
    with torch.no_grad():
        assert (model(tokens).logits - checkpoint(tokens)).abs().max() < 1e-5
    assert model.generation_config.eos_token_id == 2
    # And back, the same bits.
    direct, back = convert(run, tmp_path / "direct.gguf"), convert(folder, tmp_path / "stories.gguf")
    assert weights_of(direct) == weights_of(back)
    one, other = open_gguf(direct), open_gguf(back)
    assert (one.config, one.tokenizer.pieces, one.tokenizer.types) == (
        other.config,
        other.tokenizer.pieces,
        other.tokenizer.types,
    )
    assert [one.tokenizer.encode(text) for text in TEXTS] == [other.tokenizer.encode(text) for text in TEXTS]
    assert convert(direct, tmp_path / "third.gguf").read_bytes() == direct.read_bytes()
    for version in "012":
        convert(run, tmp_path / "stories.bin", "--version", version)


@pytest.mark.parametrize(
    "name", ["llama", "llama tied", "llama with heads of its own", "llama with biases", "llama linear", "mistral"]
)
def test_a_llama_back_in_transformers(name: str, tmp_path: Path) -> None:
    model = families.make(name)
    folder = save(model, tmp_path / "model")
    again = convert(convert(folder, tmp_path / "model.gguf"), tmp_path / "again")
    loaded = hf.AutoModelForCausalLM.from_pretrained(again, attn_implementation="eager").eval()
    assert type(loaded) is type(model)
    for parameter, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[parameter]), parameter
    tokens = list(range(5, 45))
    assert np.array_equal(logits_of(model, tokens), logits_of(loaded, tokens))


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(families.make("qwen3"), tmp_path / "in/model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type: is 'mamba'; only llama, mistral"),
        ({"model_type": None}, "model_type: this key is missing"),
        ({"attention_sink": True}, "attention_sink: is true, and is not known here"),
        ({"hidden_act": "relu"}, "hidden_act: is 'relu', but these models have silu"),
        ({"hidden_size": "64"}, "hidden_size: must be of kind int"),
        ({"hidden_size": None}, "hidden_size: is missing from config.json"),
        ({"hidden_size": 80}, "has shape"),
        ({"num_hidden_layers": 4, "layer_types": None}, "blk.3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: is 0"),
        ({"num_attention_heads": 3}, "num_attention_heads: 2 key/value heads|num_key_value_heads: 2 key/value heads"),
        ({"num_key_value_heads": -1}, "num_key_value_heads: is -1"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: must be of kind float"),
        ({"head_dim": 25}, "even count|has shape|even"),
        ({"vocab_size": 321}, "vocab_size: is 321, but the embedding has 320 rows"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 2.0}}, "rope_type: is 'dynamic'"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale: is 1.0"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "linear"}}, "factor: is missing"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta: is -1.0, but must be a number above 0"),
        ({"rope_parameters": 5}, "rope_parameters: must hold"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "longrope", "factor": 2.0}}, "short_factor: must be 12"),
        ({"layer_types": ["linear_attention"] * 3}, "layer_types: must be full_attention or"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding_window does not say how long"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: is {"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: must be of kind bool"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps: is too large a number"),
        ({"rope_theta": 10**400, "rope_parameters": None}, "rope_theta: is '?1000.*…, but must be a number above 0"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": ["yarn"]}}, "rope_type: is "),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 1e-5}}, "factor: is 1e-05, but must"),
        (
            {"original_max_position_embeddings": 1, "rope_parameters": {"rope_theta": 1e6, "rope_type": "longrope"}},
            "original_max_position_embeddings: is 1, but must be from 2",
        ),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: is 1.5, but a share is at most 1"),
        ({"bos_token_id": "x" * 10**6, "hidden_size": "x" * 10**6}, "hidden_size: must be of kind int"),
    ],
)
def test_fields_that_are_not_known_or_wrong(
    folder: Path, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    rewrite(folder / "config.json", **changes)
    assert re.search(message, refused(folder, tmp_path / "model.gguf"))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """All places in JSON where a value stands: what holds it, and its key there."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models of which one file after the other is changed, and put back."""
    names = ("qwen3", "gemma3", "phi3", "llama")
    return [save(families.make(name), tmp_path_factory.mktemp(name) / "model") for name in names]


@settings(max_examples=300)
@given(data=st.data())
def test_any_value_at_any_place_is_taken_or_refused_in_words(folders: list[Path], data: st.DataObject) -> None:
    folder = data.draw(st.sampled_from(folders))
    path = data.draw(st.sampled_from(sorted(folder.glob("*.json"))))
    before = path.read_bytes()
    content = [json.loads(before)]
    holder, key = data.draw(st.sampled_from(places(content)))
    holder[key] = data.draw(ANYTHING)
    try:
        path.write_text(json.dumps(content[0]))
        with suppress(FabellaError), open_huggingface(folder) as model:
            assert model.config().dim > 0
    finally:
        path.write_bytes(before)


def test_a_bias_that_is_not_announced(tmp_path: Path) -> None:
    folder = save(families.make("llama with biases"), tmp_path / "model")
    rewrite(folder / "config.json", attention_bias=False)
    assert "is a bias, but config.json does not say" in refused(folder, tmp_path / "model.gguf")


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header[Q_PROJ].update(data_offsets=[0, 1 << 40]), "is damaged, or its download is incomplete"),
        (lambda header: header[Q_PROJ].update(shape=[96, 65]), "is damaged"),
        (lambda header: header[Q_PROJ].update(shape=[64, 96]), "has shape"),
        (lambda header: header[Q_PROJ].update(dtype="I32"), "holds numbers of type I32"),
        (
            lambda header: header.update({"model.layers.0.extra.weight": header.pop(Q_PROJ)}),
            "not part of a qwen3 model",
        ),
        (lambda header: header.update({"model.layers.x.norm.weight": header.pop(Q_PROJ)}), "not part of a qwen3 model"),
        (lambda header: header.update({"lm_head.bias": header.pop("lm_head.weight")}), "lm_head|is a bias"),
        (lambda header: header.update({"weights": header.pop(Q_PROJ)}), "not part of a qwen3 model"),
        (lambda header: header.update({Q_PROJ.replace(".0.", ".01."): header.pop(Q_PROJ)}), "and so is another tensor"),
        (lambda header: header.update({Q_PROJ.replace("0", "9" * 5000): header.pop(Q_PROJ)}), "not part of a qwen3"),
    ],
)
def test_damaged_weights(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    change_header(folder / "model.safetensors", change)
    assert re.search(message, refused(folder, tmp_path / "model.gguf"))


def test_weights_that_are_cut_off_or_something_else(folder: Path, tmp_path: Path) -> None:
    path, out = folder / "model.safetensors", tmp_path / "model.gguf"
    data = path.read_bytes()
    for content in (data[:-1], data[:100], b"", data + b"x"):
        path.write_bytes(content)
        assert str(path) in refused(folder, out)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\n")
    assert "Git LFS" in refused(folder, out)
    path.unlink()
    assert "neither model.safetensors nor" in refused(folder, out)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "save the model anew as safetensors" in refused(folder, out)
    (folder / "config.json").write_text("{")
    assert "is no JSON, or is damaged" in refused(folder, out)


def test_parts_that_are_missing_or_elsewhere(tmp_path: Path) -> None:
    folder = save(families.make("qwen3"), tmp_path / "model", max_shard_size="100KB")
    index, out = folder / "model.safetensors.index.json", tmp_path / "model.gguf"
    listed = json.loads(index.read_text())
    for file, message in (("../x.safetensors", "no file beside it"), (5, "no file beside it"), ("x", "is missing")):
        index.write_text(json.dumps({"weight_map": listed["weight_map"] | {Q_PROJ: file}}))
        assert message in refused(folder, out)
    index.write_text(
        json.dumps({"weight_map": listed["weight_map"] | {Q_PROJ: listed["weight_map"]["lm_head.weight"]}})
    )
    assert re.search("but it is not|not part", refused(folder, out))
    index.write_text(json.dumps({"weight_map": {}}))
    assert "has no weight_map" in refused(folder, out)


def test_a_weight_that_is_no_number(tmp_path: Path) -> None:
    model = families.make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    folder = save(model, tmp_path / "model")
    assert "blk.1.ffn_up.weight: F32: a weight is not a finite number" in refused(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def nested(depth: int) -> dict[str, Any]:
    """Sequences of steps, one within the other."""
    step: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


def test_tokenizers_that_we_do_not_have(folder: Path, tmp_path: Path) -> None:
    path, out = folder / "tokenizer.json", tmp_path / "model.gguf"
    made = json.loads(path.read_text())

    def with_model(**changes: Any) -> dict[str, Any]:
        return made | {"model": made["model"] | changes}

    cases: list[tuple[dict[str, Any], str]] = [
        (with_model(type="Unigram"), "model.type: is 'Unigram'; only BPE"),
        (with_model(dropout=0.1), "model.dropout"),
        (with_model(vocab={"a": 5, "b": 5}), "have the id 5"),
        (with_model(merges=["a"]), "model.merges: 'a' is no merge"),
        (with_model(merges=["▁w1 ▁w2"]), "'▁w1▁w2' is no piece"),
        (made | {"normalizer": {"type": "NFKC"}}, "normalizer: .* is not supported"),
        (made | {"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer: .* is not supported"),
        (made | {"model": 3}, "has no vocabulary"),
        (made | {"added_tokens": [{"content": "a"}]}, "has no id"),
        (made | {"added_tokens": {"content": "a"}}, "added_tokens: must be a list, not {"),
        (made | {"added_tokens": ["<s>"]}, "added_tokens: must be an object, not '<s>'"),
        (made | {"normalizer": "NFC"}, "normalizers: must be an object, not 'NFC'"),
        (made | {"normalizer": {"type": "Sequence", "normalizers": {"a": 1}}}, "normalizers: must be a list"),
        (made | {"normalizer": nested(200)}, "more than 8 sequences are one within the other"),
        (
            made | {"post_processor": {"type": "TemplateProcessing", "single": [[]]}},
            "post_processor: must be an obj",
        ),
        (with_model(merges=3), "model.merges: must be a list, not 3"),
        (with_model(merges=["a b" * 10**6]), "model.merges: 'a ba .{1,60} is no merge"),
    ]
    letters = {"a": 0, "b": 1, "ab": 2, "bb": 3, "abb": 4}
    for merges, message in (
        (["a b", "b b", "ab b"], "'a' and 'bb' do not merge to 'abb'"),
        (["a b", "b b", "ab b", "a bb", "a b"], "those of 'ab' do not follow each other"),
    ):
        cases.append((made | {"model": made["model"] | {"vocab": letters, "merges": merges}}, message))
    for changed, message in cases:
        path.write_text(json.dumps(changed))
        assert re.search(message, refused(folder, out)), message
    byte_level("gpt-2").save(str(path))
    assert "the tokenizer has 500 tokens, but the embedding only 320" in refused(folder, out)
    made = json.loads(path.read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "splits text in a way"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer: .* is not supported, only NFC"),
        ({"model": made["model"] | {"ignore_merges": True}}, "ignore_merges: is True"),
    ]
    wider = save(families.llama(vocab_size=501), tmp_path / "in/wider")
    for change, message in changes:
        (wider / "tokenizer.json").write_text(json.dumps(made | change))
        assert re.search(message, refused(wider, out)), message
    path.unlink()
    assert "neither tokenizer.json nor tokenizer.model" in refused(folder, out)


def test_sentencepiece_files_that_we_do_not_have(sentencepiece_model: Path, tmp_path: Path) -> None:
    data = sentencepiece_model.read_bytes()
    path = tmp_path / "tokenizer.model"
    unigram = tmp_path / "unigram"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_prefix=str(unigram), vocab_size=400, minloglevel=2
    )
    for content, message in (
        (unigram.with_suffix(".model").read_bytes(), "is a unigram model; only BPE"),
        (data[:-1], "ends too early"),
        (data[: len(data) // 2], "ends too early|unigram"),
        (b"\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07", "is damaged, or no tokenizer"),
        (b"", "no pieces"),
    ):
        path.write_bytes(content)
        with pytest.raises(FabellaError, match=message):
            read_tokenizer_file(path, 700)
    path.write_bytes(data)
    with pytest.raises(FabellaError, match="has 700 tokens, but the model has 600; it is another's"):
        read_tokenizer_file(path, 600)


def test_other_parts_of_a_tokenizer_that_are_something_else(folder: Path, tmp_path: Path) -> None:
    settings, out = folder / "tokenizer_config.json", tmp_path / "model.gguf"
    made = json.loads(settings.read_text())
    (folder / "generation_config.json").write_text('{"eos_token_id": [[2], {}, 2]}')
    settings.write_text(json.dumps(made | {"chat_template": [{"name": []}, 3, {"name": "default", "template": "hi"}]}))
    assert open_gguf(convert(folder, out)).chat_template == "hi"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    assert "chat_template.jinja: is not UTF-8 text" in refused(folder, out)


class Evil:
    """What runs a command when it is unpickled as usual."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


def test_checkpoints_that_are_damaged_or_hold_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, out = tmp_path / "ckpt.pt", tmp_path / "model.gguf"
    some_tokenizer(tmp_path / "tokenizer.bin")
    args = ARGS
    weights = named_by_meta(some_llama())
    good: dict[str, Any] = {"model": weights, "model_args": args}
    torch.save(good, path)
    data = path.read_bytes()
    for content in (data[:-1000], data[: len(data) // 2], data[:10], b"", pickle.dumps(good)):
        path.write_bytes(content)
        assert str(path) in refused(path, out)
    torch.save(good | {"config": Evil()}, path)
    assert "is damaged, or holds more than weights" in refused(path, out)
    assert not (tmp_path / "evil").exists()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": 5}, "is no checkpoint of llama2.c's"),
        ({"model_args": args | {"n_experts": 8}}, "n_experts: is 8, and is not known here"),
        ({"model_args": args | {"n_heads": 5}}, "n_heads"),
        ({"model_args": args | {"n_layers": 3}}, "blk.2"),
        ({"model": weights | {"layers.0.attention.wx.weight": weights["norm.weight"]}}, "not part of a Llama"),
        ({"model": weights | {"norm.weight": weights["norm.weight"][:5]}}, "has shape"),
        ({"model": weights | {"norm.weight": weights["norm.weight"].double()}}, "is a tensor of torch.float64"),
        ({"model": {"norm.weight": weights["norm.weight"]}}, "missing"),
    ]
    for change, message in cases:
        torch.save(good | change, path)
        assert message in refused(path, out)
    # Numbers that are not all there would be made up, or take memory that nobody has.
    few: list[torch.Tensor] = [torch.zeros(1, 1).expand(1 << 17, 64), weights["output.weight"].to_sparse()]
    for tensor in few:
        torch.save(good | {"model": weights | {"layers.0.feed_forward.w1.weight": tensor}}, path)
        assert "is sparse, or has fewer numbers" in refused(path, out)
    for names in (good | {"model": {5: weights["norm.weight"]}}, good | {"model_args": {5: 5}}, {5: 5}, [5]):
        torch.save(names, path)
        assert re.search("is no checkpoint of llama2.c's|holds no weights by their names", refused(path, out))
    torch.save(good | {"model": {name: weights[name] for name in weights if name != "norm.weight"}}, path)
    assert "norm.weight: is missing" in refused(path, out)
    torch.save(good, path)
    (tmp_path / "tokenizer.bin").unlink()
    assert "no such tokenizer; --tokenizer says where it is" in refused(path, out)


@pytest.mark.parametrize("content", [b".", b"0.", b"\x86.", b"R.", b"J.", b"Q.", b"}(K\x01u.", b"cos\nsystem\n.", b""])
def test_a_stream_that_makes_no_sense(content: bytes, tmp_path: Path) -> None:
    good = io.BytesIO()
    torch.save({"model": {}}, good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "ckpt.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    message = refused(tmp_path / "ckpt.pt", tmp_path / "model.gguf")
    assert message == f"{tmp_path / 'ckpt.pt'}: is damaged, or holds more than weights"


def test_models_that_a_format_cannot_hold(tmp_path: Path) -> None:
    biased = families.llama(attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5)
    for model, bin_message, folder_message in (
        (families.make("qwen3"), "can only hold a plain Llama", "only models of the family llama"),
        (families.make("llama 3.1"), "can only hold a plain Llama", "RoPE is scaled"),
        (families.make("llama"), "rope_base is 50000.0, not 10000.0", ""),
        (families.make("llama tied"), "norm_eps is 9.99", ""),
        (biased, "without biases", ""),
    ):
        path = convert(save(model, tmp_path / "in/model"), tmp_path / "model.gguf")
        assert bin_message in refused(path, tmp_path / "model.bin")
        if folder_message:
            assert folder_message in refused(path, tmp_path / "out")
        path.unlink()
    odd = convert(save(families.make("llama odd"), tmp_path / "in/odd"), tmp_path / "odd.gguf")
    assert "Q4_K needs a multiple of 32" in refused(odd, tmp_path / "model.gguf", "--format", "Q4_K")


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    path = convert(save(families.make("llama tied"), tmp_path / "in"), tmp_path / "model.gguf")
    assert "--format: llama2.c's files have none" in refused(path, tmp_path / "a.bin", "--format", "F16")
    assert "--version: is that of llama2.c's" in refused(path, tmp_path / "a.gguf", "--version", "1")
    assert "F32, F16, BF16 numbers, not Q8_0" in refused(path, tmp_path / "a", "--format", "Q8_0")
    assert "is the source itself" in refused(path, path)
    assert "is there already" in refused(path, tmp_path / "in")
    assert "there is no folder" in refused(path, tmp_path / "no/where.gguf")
    assert "there is no such file" in refused(tmp_path / "nothing", tmp_path / "a.gguf")
    (tmp_path / "empty").mkdir()
    assert "holds no model: neither config.json" in refused(tmp_path / "empty", tmp_path / "a.gguf")
    assert "has its own tokenizer" in refused(tmp_path / "in", tmp_path / "a.gguf", "--tokenizer", str(path))


def test_what_is_there_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    some_tokenizer(tmp_path / "tokenizer.bin")
    torch.save({"model": named_by_meta(some_llama()), "model_args": ARGS}, tmp_path / "ckpt.pt")
    (tmp_path / "other/tokenizer.bin").write_bytes(b"of another model")
    assert "is there already, of another model" in refused(tmp_path / "ckpt.pt", tmp_path / "other/model.bin")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "other").iterdir()] == [
        ("tokenizer.bin", b"of another model")
    ]
    (tmp_path / "folder.tmp").mkdir()
    assert (convert(tmp_path / "ckpt.pt", tmp_path / "folder") / "config.json").is_file()
    assert (tmp_path / "folder.tmp").is_dir()


def test_the_command_says_what_is_wrong_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["convert", str(tmp_path / "x"), "-o", str(tmp_path / "y.gguf")])
    assert command.main() == 1
    assert capsys.readouterr().err == f"convert: {tmp_path / 'x'}: there is no such file or folder\n"
