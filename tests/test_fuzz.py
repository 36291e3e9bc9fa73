"""libFuzzer on packing, loading and computing (tests/fuzz.c), both orders of integers.

In every test run the same inputs. For many more: ``python build.py test -m slow tests/test_fuzz.py``, which keeps what
it finds in build/fuzz/ and goes on from there the next time.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from builder.tools import CACHE

FLAGS = "-std=c11 -g -O1 -fno-sanitize-recover=all -ffp-contract=off -Wall -Wextra -Werror".split()
SANITIZERS = "-fsanitize=fuzzer,address,undefined"


@pytest.fixture(scope="module", params=["simd", "relaxed"])
def fuzzer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("clang-19") or shutil.which("clang")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz"
    empty = program.with_suffix(".c")
    empty.write_text("int LLVMFuzzerTestOneInput(const char *data, long size) { return !data && size; }")
    if not compiler or subprocess.run([compiler, SANITIZERS, empty, "-o", program], capture_output=True).returncode:
        pytest.skip("needs clang with libFuzzer: sudo apt-get install clang-19 libclang-rt-19-dev")
    layout = ["-DRELAXED"] if request.param == "relaxed" else []
    source = Path(__file__).with_name("fuzz.c")
    subprocess.run([compiler, *FLAGS, SANITIZERS, *layout, source, "-o", program], check=True)
    return program


def fuzz(program: Path, runs: int, *corpus: Path) -> None:
    # How much memory the process holds is up to the sanitizer and the machine; what one allocation may ask for is not.
    memory = ("-malloc_limit_mb=64", "-rss_limit_mb=0")
    limits = (f"-runs={runs}", "-max_len=1024", "-len_control=0", "-seed=1", *memory)
    done = subprocess.run([program, *limits, *corpus], cwd=program.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    assert f"Done {runs} runs" in done.stderr


def test_a_thousand_inputs(fuzzer: Path) -> None:
    fuzz(fuzzer, 1000)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_hundred_thousand_inputs(fuzzer: Path) -> None:
    corpus = CACHE / "fuzz"
    corpus.mkdir(parents=True, exist_ok=True)
    fuzz(fuzzer, 100_000, corpus)
    print(f"{len(list(corpus.iterdir())):,} ways through the code known by now")
