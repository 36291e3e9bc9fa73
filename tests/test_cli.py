"""``python -m fabella``: the story on standard output, everything else on standard error, llama2.c's flags."""

from __future__ import annotations

import math
import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fabella.architectures import expected_shapes
from fabella.gguf import copy_gguf, describe, write_gguf
from fabella.modelfile import Config
from fabella.sources import FileSource

from .llama2c_files import model_bin
from .random_models import tokenizer, write_random_model

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, seq_len=80)


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "py")}


def fabella(
    *arguments: str | Path, status: int = 0, piped: bytes = b"", module: str = "fabella"
) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user does, with something on its standard input."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], input=piped, capture_output=True, env=ENVIRONMENT
    )
    result = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG)


def test_the_story_goes_to_standard_output_and_the_speed_to_standard_error(model: Path) -> None:
    done = fabella(model, "-i", "Hello", "-t", "0", "-n", "40")
    assert done.stdout.startswith("Hello")
    assert re.search(r"\[random 0: \d+ tokens, \d+ tokens/s, seed \d+; (length reached|the end)\]", done.stderr)
    assert fabella(model, "-i", "Hello", "-t", "0", "-n", "40").stdout == done.stdout


def test_one_seed_tells_one_story(model: Path) -> None:
    stories = {seed: fabella(model, "-s", seed, "-n", "30").stdout for seed in ("1", "2")}
    assert stories["1"] != stories["2"]
    assert fabella(model, "-s", "1", "-n", "30").stdout == stories["1"]


def test_without_a_seed_each_story_is_another_and_its_seed_is_told(model: Path) -> None:
    first, second = fabella(model, "-n", "40"), fabella(model, "-n", "40")
    assert first.stdout != second.stdout
    seed = re.search(r"seed (\d+)", first.stderr)
    assert seed
    assert fabella(model, "-n", "40", "-s", seed[1]).stdout == first.stdout


def test_each_sampling_flag_changes_the_story_as_defined(model: Path) -> None:
    greedy = fabella(model, "-t", "0", "-n", "60").stdout
    assert fabella(model, "-k", "1", "-s", "7", "-n", "60").stdout == greedy
    assert fabella(model, "-p", "0.001", "-s", "7", "-n", "60").stdout == greedy
    assert fabella(model, "-p", "1", "-s", "7", "-n", "60").stdout != greedy


def test_length_counts_the_prompt_and_zero_means_the_whole_context(model: Path) -> None:
    def count(*arguments: str) -> int:
        return int(re.search(r": (\d+) tokens", fabella(model, "-t", "0", *arguments).stderr)[1])  # type: ignore[index]

    assert count("-n", "20") == 20  # <s> takes the first position and is not printed: 20 others follow
    assert count("-n", "20", "-i", "ab") < 20
    assert count("-n", "0") == 80
    assert "context full" in fabella(model, "-t", "0", "-n", "999").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-t", "-1"], "temperature"),
        (["-t", "nan"], "temperature"),
        (["-p", "1.5"], "top_p"),
        (["-k", "-3"], "top_k"),
        (["-s", "-1"], "seed"),
        (["-n", "-1"], "-n -1"),
        (["-i", "word " * 100], "tokens long, but the model's context is 80"),
        (["-i", "word " * 10, "-n", "8"], "the length asked for is 8"),
        (["-i", "x" * 100_000], "at least 20000 tokens long, but the model's context is 80"),
        (["-t", "1e400"], "temperature"),
        (["-s", str(1 << 64)], "seed"),
    ],
)
def test_bad_arguments_are_errors_in_words(model: Path, arguments: list[str], message: str) -> None:
    done = fabella(model, *arguments, status=1)
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["-t", "warm"], ["-n", "1.5"], ["-k", ""], ["-s", "0x7"], ["-x"], []])
def test_what_is_no_argument_shows_the_usage(model: Path, arguments: list[str]) -> None:
    """The last one lacks the model."""
    done = fabella(*([str(model), *arguments] if arguments else []), status=2)
    assert "usage: fabella" in done.stderr
    assert done.stdout == ""


def test_no_argument_is_too_large(model: Path) -> None:
    assert fabella(model, "-t", "0", "-n", "1" + "0" * 30, "-k", "1" + "0" * 30).stdout


def test_seeds_are_those_of_the_page(model: Path) -> None:
    """Its field takes 18 digits, and it chooses among 32 bits itself."""
    seed = re.search(r"seed (\d+)", fabella(model, "-n", "3").stderr)
    assert seed
    assert 1 <= int(seed[1]) < 1 << 32
    assert "seed 999999999999999999;" in fabella(model, "-n", "3", "-s", "9" * 18).stderr
    done = fabella(model, "-s", "1" + "0" * 18, status=1)
    assert "seed: is 1000000000000000000, but must be from 1 to 999999999999999999, or 0" in done.stderr


def test_defaults_are_the_page_s_or_the_model_s_own(tmp_path: Path, model: Path) -> None:
    story = fabella(model, "-s", "3").stdout
    assert story == fabella(model, "-s", "3", "-t", "0.8", "-p", "0.9", "-n", "0").stdout
    assert story != fabella(model, "-s", "3", "-t", "1.5").stdout
    own = tmp_path / "own.gguf"
    with FileSource(model) as source, own.open("wb") as file:
        copy_gguf(source, file, {"fabella.settings": '{"temperature": 1.5, "top_p": 1, "min_p": 0.02, "length": 30}'})
    asked = ("-t", "1.5", "-p", "1", "--min-p", "0.02")
    done = fabella(own, "-s", "3")
    assert done.stdout == fabella(model, "-s", "3", *asked, "-n", "30").stdout
    assert "length reached" in done.stderr
    assert fabella(own, "-s", "3", "-t", "0").stdout == fabella(model, "-t", "0", "--min-p", "0.02", "-n", "30").stdout
    assert "Settings       temperature 1.5, top_p 1, min_p 0.02, length 30" in fabella("info", own).stdout


def test_a_story_that_begins_to_loop_ends() -> None:
    shipped = ROOT / "web/models/stories.gguf"
    done = fabella(shipped, "-i", "aaaa", "-s", "4", "-t", "0.8", "-p", "0.9", "--repetition-penalty", "1")
    assert "seed 4; began to loop]" in done.stderr
    assert done.stdout.rstrip().endswith("a" * 32)


def test_a_prompt_that_is_piped_in(model: Path) -> None:
    greedy = ("-t", "0", "-n", "40")
    expected = fabella(model, *greedy, "-i", "Grüße, 🦊").stdout
    for piped in ("Grüße, 🦊", "Grüße, 🦊\n", "Grüße, 🦊\r\n", "\ufeffGrüße, 🦊"):
        assert fabella(model, *greedy, piped=piped.encode()).stdout == expected
    assert fabella(model, *greedy, piped=b"two\nlines\n\n").stdout.startswith("two\nlines\n")
    assert fabella(model, *greedy).stdout == fabella(model, *greedy, piped=b"\n").stdout
    assert "is not UTF-8 text" in fabella(model, piped="Grüße".encode("latin-1"), status=1).stderr
    assert "longer than 16777216 bytes" in fabella(model, piped=b"a" * (1 << 24) + b"b", status=1).stderr
    assert "at least 3355443 tokens" in fabella(model, piped=b"a" * ((1 << 24) - 1), status=1).stderr


def test_standard_input_is_left_alone_where_there_is_a_prompt(model: Path) -> None:
    """Even an empty one; whoever holds a pipe open need not write to it."""
    reading, writing = os.pipe()
    try:
        for prompt in ("", "Hello"):
            command = [sys.executable, "-m", "fabella", str(model), "-n", "10", "-i", prompt]
            done = subprocess.run(command, stdin=reading, capture_output=True, env=ENVIRONMENT, check=True)
            assert done.stdout.decode().startswith(prompt)
    finally:
        os.close(writing)
        os.close(reading)


def test_a_prompt_that_is_long_in_coming_is_waited_for(model: Path) -> None:
    """And it is said that it is."""
    command = [sys.executable, "-m", "fabella", str(model), "-t", "0", "-n", "40"]
    pipe = subprocess.PIPE
    story = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT)
    assert story.stdin
    assert story.stderr
    assert story.stderr.readline() == b"fabella: waiting for the prompt on standard input; -i gives it at once\n"
    out, _ = story.communicate(b"Hello\n")
    assert (story.returncode, out.startswith(b"Hello")) == (0, True)


@pytest.mark.skipif(os.name == "nt", reason="there, arguments are text")
def test_arguments_that_are_no_text(model: Path) -> None:
    command: list[str | bytes] = [sys.executable, "-m", "fabella", str(model), "-t", "0", "-n", "40", "-i", b"a\xffb"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=ENVIRONMENT, check=True)
    assert done.stdout.decode().startswith("a\ufffdb")
    odd = os.fsencode(model.parent) + b"/\xff\n .gguf"
    command = [sys.executable, "-m", "fabella", odd, "-n", "4"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, b"No such file" in done.stderr) == (1, True)
    Path(os.fsdecode(odd)).write_bytes(model.read_bytes())
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_had_enough_is_no_error(model: Path) -> None:
    command = [sys.executable, "-m", "fabella", str(model), "-n", "0", "-s", "5", "-p", "1", "-i", ""]
    reading, writing = os.pipe()
    os.close(reading)
    story = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, env=ENVIRONMENT)
    os.close(writing)
    assert story.communicate()[1] == b""
    assert story.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_in_words(model: Path) -> None:
    command = [sys.executable, "-m", "fabella", str(model), "-n", "10", "-i", ""]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (1, b"fabella: No space left on device\n")


def test_a_terminal_of_another_encoding_gets_the_story_all_the_same(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert fabella(model, "-i", "Grüße, café 🦊", "-t", "0", "-n", "60").stdout.startswith("Grüße, café 🦊")


def test_files_that_are_no_models_are_errors_in_words(tmp_path: Path, model: Path) -> None:
    def error(path: Path, *more: str | Path) -> str:
        return fabella(path, *more, status=1).stderr

    assert "nowhere.gguf: No such file" in error(tmp_path / "nowhere.gguf")
    assert "this is a folder" in error(tmp_path)
    (tmp_path / "text").write_text("Once upon a time")
    assert "text: magic: this is not a GGUF model but a text" in error(tmp_path / "text")
    (tmp_path / "half.gguf").write_bytes(model.read_bytes()[:-100])
    assert "100 bytes too short" in error(tmp_path / "half.gguf")
    (tmp_path / "model.bin").write_bytes(model_bin())
    assert "a llama2.c model needs -z" in error(tmp_path / "model.bin")
    assert "leave -z out" in error(model, "-z", tmp_path / "text")
    assert "tokenizer: this is not a tokenizer.bin but a text" in error(tmp_path / "model.bin", "-z", tmp_path / "text")


def test_a_check_of_what_the_page_will_take(tmp_path: Path, model: Path) -> None:
    """Nothing is said of a model that can be run; of another one, in one line, why not."""
    done = fabella(model, module="fabella.check")
    assert (done.stdout, done.stderr) == ("", "")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model.read_bytes()[:-4] + struct.pack("<f", math.nan))
    done = fabella(broken, module="fabella.check", status=1)
    words = f"fabella.check: {broken}: output_norm.weight: holds a value that is not a finite number\n"
    assert (done.stdout, done.stderr) == ("", words)
    broken.write_bytes(model.read_bytes()[:-4])
    assert "incomplete" in fabella(broken, module="fabella.check", status=1).stderr
    config = replace(CONFIG, n_layers=1)
    weights = {name: np.ones(shape, np.float32) for name, shape in expected_shapes(config).items()}
    weights["output_norm.weight"] *= np.float32(3e38)
    tensors = [(name, "F32", weight.shape, weight.tobytes()) for name, weight in weights.items()]
    write_gguf(broken, describe(config, tokenizer(config.vocab_size), {}), tensors)
    assert "weights are broken" in fabella(broken, module="fabella.check", status=1).stderr


# --- llama2.c's own checkpoint: the same stories as its `run` tells ------------------------------------------------


def stories_in(readme: str) -> list[str]:
    """The two stories that llama2.c's run printed, as quoted in the README of the reference checkpoints."""
    return re.findall(r"^```\n(.*?)\n```$", readme, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (0, ["-t", "0", "-n", "200"]),
        (1, ["-t", "1.0", "-p", "0.9", "-s", "1337", "-n", "120", "-i", "One day, Lily met"]),
    ],
    ids=["greedy", "sampled"],
)
def test_llama2c_checkpoint_tells_llama2c_stories(number: int, arguments: list[str]) -> None:
    models = ROOT.parent / "shared" / "models"
    if not (models / "stories260K.bin").exists():
        pytest.skip("needs ../shared/models/stories260K.bin, llama2.c's 260K checkpoint")
    expected = stories_in((models / "README.md").read_text())[number]
    done = fabella(models / "stories260K.bin", "-z", models / "tok512.bin", *arguments)
    assert done.stdout.rstrip("\n") == expected
