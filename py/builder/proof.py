"""What the page's self-test compares with: logits from this machine's wasmtime, tokens from PyTorch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from builder.tools import PYTHON, ROOT, BuildError, cached, digest, run, say


def noted(gguf: Path, model: Path) -> Path:
    """Return a JSON file, ``{"logits", "torch"}``, for web/rooms/proof.js.

    Parameters
    ----------
    gguf
        The page's model, as it is published.
    model
        The file that it was made of. PyTorch's tokens lie beside it, if anybody has noted them (train/reference.py).
    """
    beside = model.with_suffix(".torch.json")
    torch = beside.read_bytes() if beside.is_file() else b"null"

    def make(target: Path) -> None:
        say("Noting what the page's model computes, for the self-test ...")
        target.write_text(json.dumps({"logits": _logits(gguf), "torch": _torch(torch, gguf, beside)}))

    package = [*sorted((ROOT / "py/fabella").glob("*.py")), ROOT / "py/fabella/run.wasm"]
    return cached(f"noted-{digest(gguf)}.json", digest(torch, Path(__file__), *package), make)


def _logits(gguf: Path) -> object:
    printed = run(PYTHON, "-m", "fabella.selftest", gguf.resolve(), PYTHONPATH=os.fspath(ROOT / "py"))
    return json.loads(printed)


def _torch(noted: bytes, gguf: Path, beside: Path) -> object:
    from fabella.gguf import read_gguf
    from fabella.selftest import weights_hash
    from fabella.sources import FileSource

    torch = json.loads(noted)
    if torch is None:
        return None
    with FileSource(gguf) as source:
        if torch["weights"] != weights_hash(source, read_gguf(source)):
            raise BuildError(f"{beside} is about other weights: `python -m train.reference MODEL` makes it anew")
    return {"torch": torch["torch"], "stories": torch["stories"]}
