"""The tokenizer in a Hugging Face folder, as GGUF's metadata, and back.

tokenizer.json says what is done with a text as a chain of steps out of a large kit. Two chains are ours: byte-level BPE
with one of the splits of fabella/bytelevel.py, and SentencePiece's BPE with spaces as "▁". Every step is compared; what
is another one is refused by name. SentencePiece's scores are not in it: tokenizer.model has them, or else they follow
from the order of the merges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fabella import vocabulary
from fabella.bytelevel import DIGITS_APART, GPT2, LLAMA3, QWEN2, SPLITS, WHOLE_WORDS, ByteLevel
from fabella.errors import FabellaError, ModelFileError
from fabella.metadata import quoted
from fabella.sentencepiece import SPACE, SentencePiece
from fabella.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Tokenizer

from . import explain
from .safetensors_folder import as_list, as_object, read_json, shown
from .sentencepiece_file import sentencepiece_of

JSON, MODEL, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"
NO_SCORE = -1000.0  # of a piece that no text is merged to
PADDING = "[PAD{}]"  # a row of the embedding that no text has, as llama.cpp's converter calls it

# ---- What the chains are ---------------------------------------------------------------------------------------------

Step = dict[str, Any]
SPECIAL_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(use_regex: bool) -> Step:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def _split(numbers: str) -> list[Step]:
    pattern = {"Regex": SPECIAL_CASES + numbers + REST}
    return [{"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}, _byte_level(False)]


# How a text is split into words, by the regular expression that does the same here.
CHAINS: dict[str, list[Step]] = {
    GPT2: [_byte_level(True)],
    DIGITS_APART: [{"type": "Digits", "individual_digits": True}, _byte_level(True)],
    LLAMA3: _split(r"\p{N}{1,3}"),
    QWEN2: _split(r"\p{N}"),
}
# What GGUF calls them, by whether a text is composed first (NFC) and a whole word that is a piece is taken as it is.
SPLIT_NAMES = {
    (GPT2, False, False): "gpt-2",
    (DIGITS_APART, False, False): "smollm",
    (LLAMA3, False, True): "llama-bpe",
    (LLAMA3, False, False): "smaug-bpe",
    (QWEN2, True, False): "qwen2",
    (QWEN2, False, False): "deepseek-r1-qwen",
}
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
MEANINGLESS = ("trim_offsets", "cache_capacity")
DEEPEST = 8  # sequences of steps one within the other


def _steps(step: Any, parts: str, depth: int = 0) -> list[Step]:
    """A chain as a list of its steps, without what changes nothing; a sequence of them has them in ``parts``."""
    if not step:
        return []
    name = f"tokenizer {parts}"
    step = as_object(step, name)
    if step.get("type") == "Sequence":
        if depth == DEEPEST:
            raise ModelFileError(name, f"more than {DEEPEST} sequences are one within the other")
        inside = as_list(step.get(parts) or [], name)
        return [part for inner in inside for part in _steps(inner, parts, depth + 1)]
    return [{key: value for key, value in step.items() if key not in MEANINGLESS}]


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read_tokenizer(folder: Path, config: Mapping[str, Any], rows: int) -> tuple[dict[str, Any], list[str]]:
    """Read the tokenizer of a model whose config.json and number of tokens are known.

    Returns
    -------
    The metadata, and notes for people.

    Raises
    ------
    FabellaError
        A file is missing or damaged; a ``ModelFileError`` names the part of the tokenizer that is not supported.
    """
    settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    notes: list[str] = []
    if (folder / JSON).is_file():
        tokenizer = _from_json(folder, settings, config, rows, notes)
    elif (folder / MODEL).is_file():
        base = sentencepiece_of((folder / MODEL).read_bytes())
        added = _listed(folder, settings)
        tokenizer = _scored(base, base.scores, added, rows, notes, base.add_space_prefix)
        tokenizer.add_bos = bool(settings.get("add_bos_token", True))
    else:
        raise FabellaError(f"{folder}: has neither {JSON} nor {MODEL}, the tokenizer")
    metadata = vocabulary.describe(tokenizer) | _ends(folder, settings, config, tokenizer, notes)
    template = _template(folder, settings)
    return metadata | ({"tokenizer.chat_template": template} if template else {}), notes


def _from_json(
    folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any], rows: int, notes: list[str]
) -> Tokenizer:
    chain = read_json(folder / JSON)
    model = chain.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)):
        raise FabellaError(f"{folder / JSON}: has no vocabulary")
    # Files of before 2020 do not say that they are BPE; unigram models have a list of pieces and scores.
    kind = model.get("type") or ("BPE" if "merges" in model else "")
    if kind != "BPE":
        raise ModelFileError("tokenizer model.type", f"is {quoted(str(kind))}; only BPE can be used")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ModelFileError(f"tokenizer model.{key}", f"is {shown(model[key])}, which is not supported")
    pieces = _pieces(model["vocab"])
    added = _added(chain.get("added_tokens") or [], notes)
    merges = [_pair(merge) for merge in as_list(model.get("merges") or [], "tokenizer model.merges")]
    before, normal = _steps(chain.get("pre_tokenizer"), "pretokenizers"), _steps(chain.get("normalizer"), "normalizers")
    tokenizer: Tokenizer
    if any(step.get("type") == "ByteLevel" for step in before):
        pieces, types = _filled(pieces, [NORMAL] * len(pieces), added, rows, notes)
        eos = _id_of("eos", settings, config, pieces)
        if eos is None:
            raise ModelFileError("eos_token_id", "neither the tokenizer nor config.json says which token ends a text")
        bos = _id_of("bos", settings, config, pieces)
        split = _split_name(before, normal, bool(model.get("ignore_merges")))
        tokenizer = ByteLevel(pieces, types, merges, split, eos if bos is None else bos, eos)
        adds = bos is not None and _adds_bos(chain, settings, pieces[bos])
    else:
        prefix = _space_prefix(before, normal)
        if (folder / MODEL).is_file():
            base = sentencepiece_of((folder / MODEL).read_bytes())
            tokenizer = _scored(base, base.scores, added, rows, notes, prefix)
        else:
            types = [BYTE if model.get("byte_fallback") and _is_byte(piece) else NORMAL for piece in pieces]
            for id, piece in enumerate(pieces):
                types[id] = UNKNOWN if piece == model.get("unk_token") else types[id]
            for id, (piece, type) in added.items():
                if id < len(pieces) and piece == pieces[id] and types[id] == NORMAL:
                    types[id] = type
            base = SentencePiece(pieces, [0.0] * len(pieces), types, 0, 0, _first(UNKNOWN, types))
            tokenizer = _scored(base, _scores(pieces, types, merges), added, rows, notes, prefix)
        for name in ("bos", "eos"):
            found = _id_of(name, settings, config, tokenizer.pieces)
            if found is not None:
                setattr(tokenizer, f"{name}_id", found)
        adds = _adds_bos(chain, settings, tokenizer.pieces[tokenizer.bos_id])
    tokenizer.add_bos = adds
    return tokenizer


def _pieces(vocab: Any) -> list[str]:
    """The pieces by their ids; where there is none, a name that no text has."""
    if not isinstance(vocab, dict) or not vocab or not all(type(id) is int and id >= 0 for id in vocab.values()):
        raise ModelFileError("tokenizer model.vocab", "must say the id of each piece")
    size = max(vocab.values()) + 1
    if size > 2 * len(vocab) + 1000:
        raise ModelFileError("tokenizer model.vocab", f"has {len(vocab)} pieces, but ids up to {size - 1}")
    pieces = [""] * size
    for piece, id in vocab.items():
        if pieces[id]:
            raise ModelFileError("tokenizer model.vocab", f"{quoted(pieces[id])} and {quoted(piece)} have the id {id}")
        pieces[id] = piece
    return pieces


def _pair(merge: Any) -> str:
    """A merge as "left right": files have it as such, or as a list of the two."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and " " not in p for p in parts):
        raise ModelFileError("tokenizer model.merges", f"{shown(merge)} is no merge of two pieces")
    return " ".join(parts)


def _added(tokens: Any, notes: list[str]) -> dict[int, tuple[str, int]]:
    """The tokens that were added, by their ids: piece and type."""
    found, swallow = {}, []
    for token in as_list(tokens, "tokenizer added_tokens"):
        token = as_object(token, "tokenizer added_tokens")
        id, piece = token.get("id"), token.get("content")
        if type(id) is not int or id < 0 or not isinstance(piece, str):
            raise ModelFileError("tokenizer added_tokens", f"{shown(token)} has no id, or no text")
        found[id] = piece, CONTROL if token.get("special") else USER_DEFINED
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            swallow.append(piece)
    if swallow:
        notes.append(
            f"transformers takes spaces beside {', '.join(swallow[:3])}{' …' if len(swallow) > 3 else ''} away; here "
            "they stay"
        )
    return found


def _listed(folder: Path, settings: Mapping[str, Any]) -> dict[int, tuple[str, int]]:
    """The tokens that were added to a tokenizer.model: the files beside it list them."""
    name = "added_tokens_decoder"
    decoder = as_object(settings.get(name) or {}, name)
    tokens = [{**as_object(token, name), "id": int(id)} for id, token in decoder.items() if id.isdecimal()]
    if not tokens and (folder / "added_tokens.json").is_file():
        listed = read_json(folder / "added_tokens.json")
        tokens = [{"id": id, "content": piece, "special": piece[:1] == "<"} for piece, id in listed.items()]
    return _added(tokens, [])


def _filled(
    pieces: Sequence[str], types: Sequence[int], added: Mapping[int, tuple[str, int]], rows: int, notes: list[str]
) -> tuple[list[str], list[int]]:
    """The vocabulary with its added tokens, as long as the embedding."""
    pieces, types = list(pieces), list(types)
    if len(pieces) > rows:
        raise ModelFileError("vocab_size", f"the tokenizer has {len(pieces)} tokens, but the embedding only {rows}")
    size = len(pieces)
    pieces += [""] * (rows - size)
    types += [NORMAL] * (rows - size)
    for id, (piece, type) in added.items():
        if id >= rows:
            notes.append(f"{piece} is left out: it is token {id}, and the embedding has {rows}")
        elif types[id] in (NORMAL, CONTROL, USER_DEFINED):  # a byte and the unknown one stay what they are
            pieces[id], types[id] = piece, type
    for id, piece in enumerate(pieces):
        if not piece:
            pieces[id], types[id] = PADDING.format(id), UNUSED
    return pieces, types


def _split_name(before: list[Step], normal: list[Step], whole_words: bool) -> str:
    """What GGUF calls a way to split text, which must be one of ours."""
    composed = normal == [{"type": "NFC"}]
    if normal and not composed:
        raise ModelFileError("tokenizer normalizer", f"{shown(normal)} is not supported, only NFC is")
    for pattern, chain in CHAINS.items():
        # "use_regex" is a later addition: without it, it is so.
        if [{"use_regex": True, **step} if step.get("type") == "ByteLevel" else step for step in before] == chain:
            name = SPLIT_NAMES.get((pattern, composed, whole_words))
            if name is None:
                raise ModelFileError(
                    "tokenizer model.ignore_merges", f"is {whole_words} with a text's way to be split, as in no model"
                )
            return name
    raise ModelFileError("tokenizer pre_tokenizer", f"splits text in a way that is not supported: {shown(before)}")


def _space_prefix(before: list[Step], normal: list[Step]) -> bool:
    """Whether SentencePiece's chain puts a space in front of a text; it must do nothing else but write spaces."""
    if normal == [PREPEND, REPLACE]:
        prefix = True
    elif normal in ([REPLACE], []):
        prefix = False
    else:
        raise ModelFileError("tokenizer normalizer", f"{shown(normal)} is not supported")
    for step in before:
        if step.get("type") == "Metaspace" and step.get("replacement") == SPACE:
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            prefix = prefix or scheme != "never"
        elif not (step.get("type") == "Split" and step.get("pattern") == {"String": " "} and normal):
            # A split at spaces finds none where they have been replaced.
            raise ModelFileError("tokenizer pre_tokenizer", f"{shown([step])} is not supported")
    if not normal and not before:
        raise ModelFileError("tokenizer", "is neither byte-level BPE nor SentencePiece's")
    return prefix


def _scored(
    base: SentencePiece,
    scores: Sequence[float],
    added: Mapping[int, tuple[str, int]],
    rows: int,
    notes: list[str],
    prefix: bool,
) -> SentencePiece:
    """A tokenizer of SentencePiece's with added tokens."""
    pieces, types = _filled(base.pieces, base.types, added, rows, notes)
    # Converters write a space in a user-defined piece as such.
    pieces = [p.replace(SPACE, " ") if type == USER_DEFINED else p for p, type in zip(pieces, types, strict=True)]
    return SentencePiece(
        pieces,
        [*scores, *[NO_SCORE] * (rows - len(scores))],
        types,
        bos_id=base.bos_id,
        eos_id=base.eos_id,
        unknown_id=base.unknown_id,
        add_space_prefix=prefix,
    )


def _scores(pieces: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> list[float]:
    """SentencePiece's scores out of merges that were once made of them: the piece that is merged first has the highest.

    Raises ``ModelFileError`` if no scores say the same as the merges: SentencePiece merges any two pieces whose union
    is one, whichever two they are.
    """
    normal = {piece for piece, type in zip(pieces, types, strict=True) if type == NORMAL and piece}
    known = set(pieces)
    ranks: dict[str, int] = {}
    last, pairs = "", set()
    for merge in merges:
        left, right = merge.split(" ")
        union = left + right
        if union not in known:
            raise ModelFileError("tokenizer model.merges", f"{quoted(union)} is no piece")
        if not {left, right, union} <= normal:
            continue
        if union != last and union in ranks:
            raise ModelFileError("tokenizer model.merges", f"those of {quoted(union)} do not follow each other")
        ranks.setdefault(union, len(ranks))
        last = union
        pairs.add(merge)
    for piece in normal:
        for left, right in _cuts(piece, normal):
            if f"{left} {right}" not in pairs:
                raise ModelFileError("tokenizer model.merges", f"{left!r} and {right!r} do not merge to {piece!r}")
    return [float(-ranks[piece]) if piece in ranks else NO_SCORE - len(ranks) for piece in pieces]


def _cuts(piece: str, pieces: set[str]) -> list[tuple[str, str]]:
    """Every two pieces that a piece can be cut into, the shortest first part first."""
    cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in pieces and right in pieces]


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _first(type: int, types: Sequence[int]) -> int:
    return types.index(type) if type in types else 0


def _id_of(name: str, settings: Mapping[str, Any], config: Mapping[str, Any], pieces: Sequence[str]) -> int | None:
    """The id of BOS or EOS, by its name in tokenizer_config.json, or else as config.json says."""
    token = settings.get(f"{name}_token")
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and text in pieces:
        return pieces.index(text)
    ids = config.get(f"{name}_token_id")
    id = ids[0] if isinstance(ids, list) and ids else ids
    return id if type(id) is int and 0 <= id < len(pieces) else None


def _adds_bos(chain: Mapping[str, Any], settings: Mapping[str, Any], bos: str) -> bool:
    """Whether a text begins with BOS."""
    if settings.get("add_bos_token") is not None:
        return bool(settings["add_bos_token"])
    for step in _steps(chain.get("post_processor"), "processors"):
        if step.get("type") != "TemplateProcessing":
            continue
        name = "tokenizer post_processor"
        for first in as_list(step.get("single") or [], name)[:1]:
            special = as_object(as_object(first, name).get("SpecialToken") or {}, name)
            if special.get("id") == bos:
                return True
    return False


def _ends(
    folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Tokenizer, notes: list[str]
) -> dict[str, Any]:
    """The other tokens that end a text, which generation_config.json lists."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    ids: list[Any] = []
    for source in (generation, config):
        given = source.get("eos_token_id")
        ids += given if isinstance(given, list) else [given]
    more = [
        id
        for id in dict.fromkeys(id for id in ids if type(id) is int)
        if 0 <= id < len(tokenizer)
        and id != tokenizer.eos_id
        and not (tokenizer.pieces[id] in vocabulary.ENDS and tokenizer.types[id] == CONTROL)
    ]
    for id in more[2:]:
        notes.append(f"{tokenizer.pieces[id]} ends a text, too, which GGUF has no third key for")
    keys = (vocabulary.KEY + "eot_token_id", vocabulary.KEY + "eom_token_id")
    return dict(zip(keys, more, strict=False))


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template; of several the default one."""
    if (folder / TEMPLATE).is_file():
        try:
            return (folder / TEMPLATE).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise FabellaError(f"{folder / TEMPLATE}: is not UTF-8 text") from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = (part for part in template if isinstance(part, dict) and part.get("name") == "default")
        template = next((part.get("template") for part in named), None)
    return template if isinstance(template, str) else None


# ---- Writing ---------------------------------------------------------------------------------------------------------


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int, template: str | None) -> None:
    """Write tokenizer.json and tokenizer_config.json, for ``AutoTokenizer``.

    Raises ``FabellaError`` if the tokenizer does something that the files cannot say, or ``OSError``.
    """
    pieces, types = tokenizer.pieces, tokenizer.types
    if len(set(pieces)) != len(pieces):
        raise FabellaError("a vocabulary in which a piece is twice cannot be written for transformers")
    special = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
    added = [
        {"id": id, "content": pieces[id].replace(SPACE, " ") if types[id] == USER_DEFINED else pieces[id]}
        | {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special[types[id]]}
        for id in tokenizer.special
        if types[id] in special
    ]
    bos, eos = pieces[tokenizer.bos_id], pieces[tokenizer.eos_id]
    chain: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    chain |= _bytelevel_chain(tokenizer) if isinstance(tokenizer, ByteLevel) else _sentencepiece_chain(tokenizer)
    chain["post_processor"] = _begins_with(bos, tokenizer.bos_id) if tokenizer.add_bos else None
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if UNKNOWN in types:
        settings["unk_token"] = pieces[types.index(UNKNOWN)]
    if template:
        settings["chat_template"] = template
    for name, value in ((JSON, chain), (CONFIG, settings)):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _model(pieces: Sequence[str], merges: Sequence[str], **more: Any) -> dict[str, Any]:
    plain = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    vocab = {piece: id for id, piece in enumerate(pieces)}
    return {"type": "BPE", **plain, **more, "vocab": vocab, "merges": list(merges)}


def _bytelevel_chain(tokenizer: ByteLevel) -> dict[str, Any]:
    known = [(composed, whole) for (split, composed, whole), name in SPLIT_NAMES.items() if name == tokenizer.split]
    composed, whole = known[0] if known else (False, tokenizer.split in WHOLE_WORDS)
    return {
        "normalizer": {"type": "NFC"} if composed else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [_written(step) for step in CHAINS[SPLITS[tokenizer.split]]],
        },
        "decoder": _written(_byte_level(True)),
        "model": _model(
            tokenizer.pieces,
            tokenizer.merges,
            unk_token=None,
            fuse_unk=False,
            byte_fallback=False,
            ignore_merges=whole,
        ),
    }


def _written(step: Step) -> Step:
    return {**step, "trim_offsets": True} if step["type"] == "ByteLevel" else step


def _sentencepiece_chain(tokenizer: Tokenizer) -> dict[str, Any]:
    assert isinstance(tokenizer, SentencePiece)
    prefix = tokenizer.add_space_prefix
    decoders: list[Step] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*([PREPEND] if prefix else []), REPLACE]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _model(
            tokenizer.pieces,
            merges_of(tokenizer),
            unk_token=tokenizer.pieces[tokenizer.unknown_id],
            fuse_unk=True,
            byte_fallback=BYTE in tokenizer.types,
            ignore_merges=False,
        ),
    }


def merges_of(tokenizer: SentencePiece) -> list[str]:
    """The merges that say the same as SentencePiece's scores: every two pieces whose union is one, highest score first.

    Raises ``FabellaError`` if two pieces have the same score, or one that is unused can be merged to.
    """
    kinds = dict(zip(tokenizer.pieces, tokenizer.types, strict=True))
    parts = {piece for piece, type in kinds.items() if type in (NORMAL, UNUSED)}
    merges: list[tuple[float, str]] = []
    for piece, score in zip(tokenizer.pieces, tokenizer.scores, strict=True):
        if piece not in parts:
            continue
        cuts = _cuts(piece, parts)
        if cuts and kinds[piece] == UNUSED:
            raise FabellaError(f"the unused piece {piece!r} cannot be written for transformers")
        merges += [(-score, f"{left} {right}") for left, right in cuts]
    merges.sort(key=lambda merge: merge[0])
    for (score, one), (next_score, other) in pairwise(merges):
        if score == next_score and one.replace(" ", "") != other.replace(" ", ""):
            raise FabellaError(f"two pieces have the same score, {one!r} and {other!r}: which merges first is not said")
    return [merge for _, merge in merges]


def _begins_with(bos: str, id: int) -> dict[str, Any]:
    """The step that puts BOS in front."""
    begin, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, begin, other],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
    }


if __name__ == "__main__":
    explain(__doc__)
