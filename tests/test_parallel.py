"""wasm/parallel.h compiled natively, with real threads under ThreadSanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("parallel.c")
FLAGS = "-std=c11 -D_GNU_SOURCE -pthread -g -O1 -fsanitize=thread -Wall -Wextra -Werror".split()


@pytest.mark.parametrize("looks", [200, None], ids=["sleepy", "as it is"])
def test_every_step_is_computed_once_whatever_the_helpers_do(tmp_path: Path, looks: int | None) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no gcc or clang to compile the native build with")
    program = tmp_path / "parallel"
    flags = [*FLAGS, f"-DSPIN_LOOKS={looks}"] if looks else FLAGS
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
