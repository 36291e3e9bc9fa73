"""``python -m fabella``: the story on standard output, everything else on standard error, llama2.c's flags."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fabella.modelfile import Config

from .random_models import write_random_model

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, seq_len=80)


def fabella(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "fabella", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT / "py")},
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


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
    ],
)
def test_bad_arguments_are_errors_in_words(model: Path, arguments: list[str], message: str) -> None:
    done = fabella(model, *arguments, status=1)
    assert message in done.stderr
    assert done.stdout == ""


def test_a_reader_that_has_had_enough_is_no_error(model: Path) -> None:
    command = [sys.executable, "-m", "fabella", str(model), "-n", "0", "-s", "5", "-p", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "py")}
    story = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert story.stdout
    assert story.stderr
    story.stdout.close()
    assert story.stderr.read() == b""
    story.wait(timeout=60)


def test_a_terminal_of_another_encoding_gets_the_story_all_the_same(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert fabella(model, "-i", "Grüße, café 🦊", "-t", "0", "-n", "60").stdout.startswith("Grüße, café 🦊")


def test_files_that_are_no_models_are_errors_in_words(tmp_path: Path, model: Path) -> None:
    assert "nowhere.gguf" in fabella(tmp_path / "nowhere.gguf", status=1).stderr
    (tmp_path / "text").write_text("Once upon a time")
    assert "-z" in fabella(tmp_path / "text", status=1).stderr
    (tmp_path / "half.gguf").write_bytes(model.read_bytes()[:-100])
    assert "100 bytes too short" in fabella(tmp_path / "half.gguf", status=1).stderr


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
