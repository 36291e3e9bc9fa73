"""The self-test: whether an engine, wherever it runs, computes what it should, bit for bit and token for token.

Two things are compared, and they are not the same:

*   **The shipped file, bit for bit.** The build has the model read a text under wasmtime and notes a hash of all logits
    after each token. Whatever browser, build of the engine and number of threads: the logits have the same bits.
*   **PyTorch, token for token.** The model's matrices are stored in 4 bits (Q4_0), and the engine rounds what it
    multiplies these by to 8 bits, which PyTorch does not. So the matrices are written out as F32, exactly, and with
    these the engine has to take the tokens that PyTorch has taken, which train/reference.py has noted.

The page loads this module when somebody presses the button (web/rooms/proof.js); ``python -m fabella.selftest
MODEL.gguf`` prints what the build notes, as JSON.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fabella.engine import Engine, Logits
from fabella.errors import ModelFileError
from fabella.hosts import BrowserFile
from fabella.modelfile import ModelFile
from fabella.sampler import likeliest
from fabella.sources import ByteSource, BytesSource

if TYPE_CHECKING:
    from fabella.page import Page

POSITIONS = 64  # after which logits are compared
HASH = 16  # hexadecimal digits of a SHA-256 that are noted
FRAME = 0.05  # seconds that `answer` works for at a time
Q4_0 = struct.Struct("<e16s")  # a block: the scale, and 32 numbers of 4 bits
LOW = [byte % 16 - 8 for byte in range(256)]  # the first 16 of a block are in the lower halves of its bytes,
HIGH = [byte // 16 - 8 for byte in range(256)]  # the others in the upper ones


# ---- What is noted ---------------------------------------------------------------------------------------------------


def hash_of(logits: Logits) -> str:
    """Return the beginning of the SHA-256 of all logits, (vocab_size) float32, little-endian."""
    return sha256(logits.to_array().tobytes()).hexdigest()[:HASH]


def logits_of(engine: Engine, prompt: Sequence[int], positions: int = POSITIONS) -> dict[str, Any]:
    """Have a model go on with a text, always by the likeliest token; note the hash of the logits after each token.

    Parameters
    ----------
    engine
        The model; what it has computed is forgotten.
    prompt
        The first tokens, at least one.
    positions
        How many tokens in all, if the context holds as many.

    Returns
    -------
    ``{"tokens", "hashes", "next"}``: the tokens computed, the hash after each, and the likeliest token after each.
    """
    engine.rewind(0)
    tokens: list[int] = []
    hashes: list[str] = []
    following: list[int] = []
    for position in range(min(positions, engine.context)):
        tokens.append(prompt[position] if position < len(prompt) else following[-1])
        logits = engine.forward(tokens[-1])
        hashes.append(hash_of(logits))
        following.append(likeliest(logits))
    return {"tokens": tokens, "hashes": hashes, "next": following}


def weights_hash(source: ByteSource, model: ModelFile) -> str:
    """Return the SHA-256 of a GGUF file's weights, which are the last of it, whatever the file says before them."""
    first = min(tensor.offset for tensor in model.tensors.values())
    return sha256(source.read(first, source.size - first)).hexdigest()


# ---- The model in F32 ------------------------------------------------------------------------------------------------


def q4_0_as_f32(data: bytes) -> array[float]:
    """Return the weights of Q4_0 blocks, (32 * blocks) float32: each is its block's scale times -8 to 7, exactly."""
    values = array("f")
    for scale, numbers in Q4_0.iter_unpack(data):
        values.extend([scale * LOW[byte] for byte in numbers])
        values.extend([scale * HIGH[byte] for byte in numbers])
    return values


class AsF32:
    """A model's file with all weights written out as F32, tensor by tensor.

    Parameters
    ----------
    model, source
        The model and its file.

    Raises
    ------
    ModelFileError
        If a tensor has another type than F32 and Q4_0.
    """

    def __init__(self, model: ModelFile, source: ByteSource) -> None:
        for tensor in model.tensors.values():
            if tensor.type not in ("F32", "Q4_0"):
                raise ModelFileError(tensor.name, f"has the type {tensor.type}: only F32 and Q4_0 are written out")
        self.source = source
        self.given = model
        self.data = bytearray()
        self.model = replace(model, tensors={})

    def tensors(self) -> Iterator[None]:
        """Write all of them, one at each step."""
        for tensor in self.given.tensors.values():
            data = self.source.read(tensor.offset, tensor.size)
            written = data if tensor.type == "F32" else q4_0_as_f32(data).tobytes()
            place = replace(tensor, type="F32", offset=len(self.data), size=len(written))
            self.model.tensors[tensor.name] = place
            self.data += written
            yield

    def load(self, near: Engine) -> Engine:
        """Return an engine with these weights, beside another in the same module; the bytes here are let go."""
        try:
            return Engine(near.host, self.model, BytesSource(bytes(self.data)))
        finally:
            self.data.clear()


# ---- The comparison --------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """Something that is not as it should be.

    Attributes
    ----------
    place
        After how many tokens.
    expected, found
        What follows by the reference, and by this engine: hashes of logits and the likeliest token, or tokens.
    """

    place: int
    expected: str
    found: str


class SelfTest:
    """Compares an engine with what was noted.

    Parameters
    ----------
    engine
        The model, as it is shipped. What it has computed is forgotten.
    model, source
        What its file says, and the file, which is needed for PyTorch's tokens alone.
    reference
        ``{"logits", "torch"}``: what `logits_of` has returned, and the JSON of train/reference.py, or None.

    Attributes
    ----------
    done, total : int
        Steps.
    result : dict
        In JSON's types, growing as the test goes on.
    """

    def __init__(
        self, engine: Engine, model: ModelFile, source: ByteSource | None, reference: Mapping[str, Any]
    ) -> None:
        self.engine = engine
        self.model = model
        self.logits = reference["logits"]
        self.torch = reference["torch"] if source else None
        self.written = AsF32(model, source) if source and self.torch else None
        self.done = 0
        self.total = len(self.logits["tokens"])
        if self.torch:
            self.total += len(model.tensors) + 2 * sum(len(story["tokens"]) for story in self.torch["stories"])
        self.result: dict[str, Any] = {}

    def run(self) -> Iterator[None]:
        """Do it all, one token or tensor at each step."""
        for part in (self._compare_logits, self._compare_with_torch):
            for _ in part():
                self.done += 1
                yield

    def _compare_logits(self) -> Iterator[None]:
        """The shipped weights, bit for bit."""
        same, differences = 0, []
        self.engine.rewind(0)
        noted = zip(self.logits["tokens"], self.logits["hashes"], self.logits["next"], strict=True)
        for place, (token, hash, following) in enumerate(noted, 1):
            logits = self.engine.forward(token)
            found = hash_of(logits)
            if found == hash:
                same += 1
            else:
                expected = f"{hash}, then {self._named(following)}"
                differences.append(Difference(place, expected, f"{found}, then {self._named(likeliest(logits))}"))
            self.result["logits"] = {
                "positions": place,
                "same": same,
                "bits": 32 * self.model.config.vocab_size,
                "differences": [difference._asdict() for difference in differences],
            }
            yield

    def _compare_with_torch(self) -> Iterator[None]:
        """The weights written out as F32, token for token; beside them the shipped ones."""
        if not self.torch or not self.written:
            return
        yield from self.written.tensors()
        engine = self.written.load(self.engine)
        try:
            stories: list[dict[str, Any]] = []
            self.result["torch"] = {"version": self.torch["torch"], "stories": stories}
            for story in self.torch["stories"]:
                said: dict[str, Any] = {"prompt": story["prompt"]}
                stories.append(said)
                for name, one in (("f32", engine), ("shipped", self.engine)):
                    yield from self._follow(one, story["tokens"], story["given"], said.setdefault(name, {}))
        finally:
            engine.close()

    def _follow(self, engine: Engine, tokens: Sequence[int], given: int, said: dict[str, Any]) -> Iterator[None]:
        """Have a model read a story, and compare which token it would take next, from the prompt's last on."""
        said.update({"tokens": 0, "same": 0, "differences": []})
        engine.rewind(0)
        for place, token in enumerate(tokens, 1):
            logits = engine.forward(token)
            if given <= place < len(tokens):
                found = likeliest(logits)
                said["tokens"] += 1
                if found == tokens[place]:
                    said["same"] += 1
                else:
                    names = self._named(tokens[place]), self._named(found)
                    said["differences"].append(Difference(place, *names)._asdict())
            yield

    def _named(self, token: int) -> str:
        """A token as people can read it."""
        return f"{token} ({json.dumps(self.model.tokenizer.decode([token]), ensure_ascii=False)})"


# ---- The page --------------------------------------------------------------------------------------------------------

# The test that is going on in the page, its steps, and how it has left the session.
_going_on: tuple[SelfTest, Iterator[None], tuple[int, int]] | None = None


def answer(page: Page, request: str, blocks: Any = None) -> str:
    """Begin a test, or go on with it for `FRAME`.

    Parameters
    ----------
    page
        The page's model, which tells nothing meanwhile.
    request
        JSON: ``{"reference", "id"}`` to begin, where the id is the SHA-256 of the model's file; ``{}`` to go on.
    blocks
        The model's file, as `fabella.page.describe` takes it.

    Returns
    -------
    JSON: ``{"done", "total", "result"}``; the test is over when as much is done as there is.

    Raises
    ------
    ModelFileError
        If the file is not the page's.
    EngineError
        If something was told in between.
    """
    global _going_on
    asked = json.loads(request)
    session, model = page.lend()
    if "reference" in asked:
        session.forget()
        assert isinstance(session.model, Engine)
        source = None
        if blocks is not None and asked["reference"]["torch"]:
            file = BrowserFile(blocks)
            source = BytesSource(file.read(0, file.size))  # a few megabytes
            if sha256(source.read(0, source.size)).hexdigest() != asked["id"]:
                raise ModelFileError("file", "is not the one that this page was built around: reload the page")
        test = SelfTest(session.model, model, source, asked["reference"])
        _going_on = test, test.run(), session.mark
    assert _going_on, "go on with what?"
    test, steps, mark = _going_on
    _going_on = None
    session.check(mark)
    until = time.perf_counter() + FRAME
    for _ in steps:
        if time.perf_counter() >= until:
            break
    if test.done == test.total:
        session.forget()
    else:
        _going_on = test, steps, session.mark
    return json.dumps({"done": test.done, "total": test.total, "result": test.result})


def main() -> None:
    """Print what the build notes of a model's logits."""
    from fabella.hosts import WasmtimeHost
    from fabella.models import open_model

    parser = argparse.ArgumentParser(prog="fabella.selftest", description="Note a model's logits, for the self-test.")
    parser.add_argument("model", type=Path, help="GGUF file")
    options = parser.parse_args()
    with open_model(options.model) as (model, source):
        engine = Engine(WasmtimeHost(), model, source)
    prompt = model.tokenizer.encode((model.card.beginnings or ("",))[0]) or [model.tokenizer.bos_id]
    print(json.dumps(logits_of(engine, prompt)))


if __name__ == "__main__":
    from fabella.console import run_command

    sys.exit(run_command("fabella.selftest", main))
