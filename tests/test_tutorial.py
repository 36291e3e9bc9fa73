"""The tutorial's commands (train/README.md) do what it says, each in small and in its order."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

from builder.tools import ROOT
from fabella.gguf import read_gguf
from fabella.modelfile import Config
from fabella.sources import FileSource

from .documents import QUICK, Way, check_commands, programs, run, served
from .random_models import write_random_adapter, write_random_model
from .test_finetune import TEMPLATE

TUTORIAL = "train/README.md"
FILES = (
    *("practice.txt", "my-text.txt", "out/practice", "out/small", "out/quick", "out/two"),
    *("practice.gguf", "practice.bin", "practice-hf", "again.gguf", "smollm2-360m.gguf", "SmolLM2-360M-Instruct"),
    *("people.jsonl", "out/people", "people-adapter.gguf", "people.gguf", "yours.gguf"),
)
SMOLLM2 = "~/.cache/fabella/SmolLM2-135M-Instruct.Q4_1.gguf"
LIKE_SMOLLM2 = Config(dim=32, hidden_dim=64, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=512)
SHAPE = QUICK.replace("--tokens 2000 ", "") + " --heads 2 --kv-heads 1"  # whatever the --size


def two_machines(command: str) -> str:
    """Run a command that is for two machines with eight GPUs each: twice here, with a process each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for there, here in (("--nproc-per-node 8", "--nproc-per-node 1"), ("first-machine:29500", f"localhost:{port}")):
        assert there in command
        command = command.replace(there, here)
    return run(f"{command} & {command}; ended=$?; wait $! && exit $ended")


def test_the_commands_of_the_tutorial(tmp_path: Path) -> None:
    (program,) = programs(TUTORIAL)
    small = program.replace("range(1, 401)", "range(1, 61)").replace("length=400", "length=60")
    assert len(small) == len(program) - 2, "it tells 400 stories, of 400 tokens at most"
    (tmp_path / "practice.py").write_text(small)
    (tmp_path / "web").symlink_to(ROOT / "web")
    (tmp_path / "my-text.txt").symlink_to("practice.txt")
    (tmp_path / "SmolLM2-360M-Instruct").symlink_to("practice-hf")
    own_files = {name: str(tmp_path / name) for name in FILES}
    own_files |= {"/shared/my-text.txt": own_files["my-text.txt"], "/shared/run": str(tmp_path / "shared")}
    smollm2 = write_random_model(tmp_path / "smollm2.gguf", LIKE_SMOLLM2, type="Q4_1", template=TEMPLATE)
    teller = write_random_adapter(tmp_path / "teller.gguf", LIKE_SMOLLM2, ranks=(2,))
    own_files |= {SMOLLM2: str(smollm2), "smollm2": str(smollm2), "web/models/storyteller.gguf": str(teller)}
    with FileSource(ROOT / "web/models/stories.gguf") as source:
        write_random_adapter(tmp_path / "yours.gguf", read_gguf(source).config, ranks=(2,))
    dist = f" --out {tmp_path / 'dist'}"
    ways: dict[str, Way] = {
        "python build.py setup && source": (None, "", ""),  # the README's test does that
        "python practice.py": (partial(run, folder=tmp_path), "", ""),
        "python -m train.train practice.txt": (run, f" {QUICK}", "Done"),
        "python -m train.train my-text.txt --out out/small": (run, f" {SHAPE} --rounds 0.5", "Done: "),
        "python -m train.train my-text.txt --out out/quick": (run, f" {SHAPE} --minutes 0.01", "Done: "),
        "python -m train.train --help": (run, "", "--rounds"),
        "python -m train.export out/practice": (run, "", "bytes"),
        "python -m train.export --help": (run, "", "Q8_0"),
        "python -m fabella practice.gguf": (run, " -n 40 -s 1", "One day, a little fox"),
        "python build.py serve": (served, f"{dist} --port 0", "Serving at http://localhost:"),
        "python build.py --model": (run, dist, "Built"),
        "torchrun --nproc-per-node 2": (run, f" {SHAPE} --tokens 600", "Done: "),
        "torchrun --nnodes 2": (two_machines, f" {SHAPE} --tokens 600", "Done: "),
        "python -m train.convert": (run, "", "bytes"),
    }
    chat = f" --out {tmp_path / 'chat'}"
    few = f" && sed -i '40,$d' {own_files['people.jsonl']}"
    ways |= {
        "python build.py --model smollm2": (run, chat, "Built"),
        "python -m train.examples.json_answers make": (run, few, ""),
        "python -m train.examples.json_answers measure": (run, "", "of the answers have the form"),
        "python -m train.finetune": (run, " --rounds 1 --batch-tokens 2048", "Best, and kept"),
        "python -m train.export out/people": (run, "", "bytes"),
        "python build.py serve --model smollm2": (served, f"{chat} --port 0", "Serving at http://localhost:"),
        "python -m fabella web/models/stories.gguf --adapter": (run, " -n 20 -s 1 -i Once", "Once"),
    }
    check_commands(TUTORIAL, ways, own_files)
    assert "Practice Stories" in (tmp_path / "dist/index.html").read_text()
