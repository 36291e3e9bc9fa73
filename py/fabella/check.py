"""``python -m fabella.check MODEL.gguf``: loads a model, and an adapter, as the page does and computes one token.

Nothing is printed if the page can run it; otherwise one line on standard error says why not, and the status is 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fabella.console import run_command
from fabella.engine import Engine
from fabella.hosts import WasmtimeHost
from fabella.models import open_model, put_adapter
from fabella.sampler import likeliest


def check() -> None:
    """Load the model that the command line names and compute its first token."""
    parser = argparse.ArgumentParser(prog="fabella.check", description="Say whether the page can run a model.")
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--adapter", type=Path, help="for the model, GGUF as well")
    options = parser.parse_args()
    with open_model(options.model) as (model, source):
        engine = Engine(WasmtimeHost(), model, source)
    put_adapter(engine, options.adapter)
    likeliest(engine.forward(model.tokenizer.bos_id))


if __name__ == "__main__":
    sys.exit(run_command("fabella.check", check))
