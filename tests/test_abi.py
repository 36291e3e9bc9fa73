"""What Python and C each write down once must be the same: error codes, structs, number formats, tensors."""

from __future__ import annotations

import re
from pathlib import Path

from fabella import abi, memory
from fabella.architectures import ABSENT_IF_TIED, LAYER_TENSORS, TENSORS
from fabella.formats import FORMATS, GROUP, LAYOUTS

SIZES = {"Q_NORM": "q_norm_size", "K_NORM": "k_norm_size"}
WASM = Path(__file__).parents[1] / "wasm"


def c_text(file: str) -> str:
    """A file without its comments."""
    return re.sub(r"/\*.*?\*/", "", (WASM / file).read_text(), flags=re.DOTALL)


def fields(file: str, name: str) -> dict[str, str]:
    """The fields of a C struct, with the codes that Python's struct has for their types."""
    codes = {"int32_t": "i", "float": "f", "double": "d"}
    (body,) = re.findall(rf"typedef struct \{{([^}}]*)\}} {name};", c_text(file))
    return {field: codes[type] for type, field in re.findall(r"(\w+) (\w+);", body)}


def test_error_codes() -> None:
    theirs = {name: int(code) for name, code in re.findall(r"(E_\w+) = (-\d+)", c_text("abi.h"))}
    assert theirs == {name: code for name, code in vars(abi).items() if name.startswith("E_")}
    assert set(theirs.values()) == set(abi.ERRORS)


def test_structs() -> None:
    assert list(fields("run.c", "Config").items()) == list(abi.CONFIG.items())
    assert list(fields("logits.h", "Candidate").items()) == list(abi.CANDIDATE.items())


def test_number_formats() -> None:
    text = c_text("formats.h")
    numbers = {name: int(number) for name, number in re.findall(r"TYPE_(\w+) = (\d+)", text)}
    assert numbers == {name: format.number for name, format in FORMATS.items()}
    assert f"GROUP = {GROUP} " in text
    table = text[text.index("Format format_of") : text.index("default: return (Format)")]
    blocks: dict[str, tuple[int, int, str]] = {}
    cases = r"((?:case TYPE_\w+:\s*)+)return \(Format\)\{(\d+), (\d+), (\w+)\};"
    for types, block, size, layout in re.findall(cases, table):
        blocks |= {name: (int(block), int(size), layout) for name in re.findall(r"TYPE_(\w+)", types)}
    assert blocks == {name: (format.block, format.block_size, format.layout) for name, format in FORMATS.items()}
    (layouts,) = re.findall(r"typedef enum \{([^}]*)\} Layout;", text)
    assert [name.strip() for name in layouts.split(",")] == list(LAYOUTS)


def test_tensors_and_their_shapes() -> None:
    text = c_text("run.c")
    rows = re.findall(r"\{(true|false), offsetof\((\w+), (\w+)\), (\w+), (\w+), (?:true|false)\}", text)
    assert [name for _, _, name, *_ in rows] == list(TENSORS)
    for in_layers, struct, name, *shape in rows:
        assert (in_layers == "true", struct) == ((True, "Layer") if name in LAYER_TENSORS else (False, "Model"))
        assert tuple(SIZES.get(size, size.lower()) for size in shape if size != "ONE") == TENSORS[name]
    assert f"tensor->place == offsetof(Model, {ABSENT_IF_TIED})" in text


def test_sizes_that_memory_is_made_room_for() -> None:
    text = c_text("run.c") + c_text("parallel.h")
    numbers = {name: int(number) for name, number in re.findall(r"enum \{ (\w+) = (\d+) \};", text)}
    assert (numbers["BATCH"], numbers["MAX_THREADS"] * numbers["QUERIES"]) == (memory.BATCH, memory.SCORES)
