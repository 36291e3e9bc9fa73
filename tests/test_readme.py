"""The README's commands do what it says: each is run, with files of the test's own and less work.

Of those that run for long, these tests among them, only what they are told is tried.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from builder.tools import PYTHON, ROOT

from .real_models import SMOLLM2, real_model

TEXT = "Once upon a time there was a little fox. She found a tiny door in an old tree, and knocked.\n<|endoftext|>\n"
QUICK = (
    "--tokens 2000 --vocab-size 300 --dim 32 --hidden-dim 32 --layers 1 --context 64 --batch-tokens 256 --no-compile"
)


def commands() -> list[str]:
    """The lines of the README's blocks of commands, without their comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (python .*|[^`\n]*\| python [^`\n]*)$", text, re.MULTILINE)
    inline = re.findall(r"`((?:echo|python|pytest) [^`]*)`", text)
    return [line.partition("  #")[0].strip() for line in lines + [" ".join(line.split()) for line in inline]]


def run(command: str) -> str:
    """Run a command as the README's reader does, in the activated environment; return what it printed."""
    activated = {**os.environ, "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=activated, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def served(command: str) -> str:
    """Run a command that serves until Ctrl-C; return what it says of that."""
    words = [str(PYTHON) if word == "python" else word for word in shlex.split(command)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = next((line for line in process.stdout if line.startswith("Serving")), "")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    return said


def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / "my-stories.txt").write_text(TEXT * 60)
    own_files = {name: str(tmp_path / name) for name in ("my-stories.txt", "out/mine", "mine.gguf", "new.gguf")}
    own_files["FILE"] = str(ROOT / "web/models/stories.gguf")
    dist = f" --out {tmp_path / 'dist'}"
    # How each is run: the beginning of the command, then what is put behind it, and what it prints.
    ways: dict[str, tuple[Callable[[str], str], str, str]] = {
        "python build.py setup && source": (run, "", "Ready"),
        "python -m train.train my-stories.txt": (run, f" {QUICK}", "Done"),
        "python -m train.export": (run, "", "bytes"),
        "python -m train.sample": (run, " -n 20 -s 1", ""),
        "python -m train.evaluate": (run, f" {own_files['out/mine']} {own_files['my-stories.txt']}", "bits per byte"),
        "python -m fabella mine.gguf": (run, " -n 20 -s 1", "Once upon a time"),
        "python -m fabella info": (run, "", "Family"),
        "python build.py serve --model smollm2": (lambda _: "", "", ""),  # a test of its own
        "python -m fabella chat": (lambda _: "", "", ""),  # this as well
        "python -m hatchling build": (lambda command: run(command.replace("-d build", f"-d {tmp_path}")), "", ""),
        "python -m fabella web/models/stories.gguf": (run, "", "Once upon a time"),
        'echo "Once upon a time" | python -m fabella mine.gguf': (run, " -n 20 -s 1", "Once upon a time"),
        "python -m fabella": (run, " --help", "usage"),
        "python build.py": (lambda _: run(f"python build.py{dist}"), "", "Built"),
        "python build.py --model FILE": (run, dist, "Built"),
        "python build.py serve": (served, f"{dist} --port 0", "Serving at http://localhost:"),
        "python build.py check --fix": (lambda _: run("python build.py check"), "", ""),
        "python build.py test": (
            lambda command: run(command.replace("build.py test", "-m pytest --collect-only")),
            "",
            "test",
        ),
        "python build.py bench": (lambda _: run("python build.py bench --help"), "", "--quick"),
        "python -m tests.figures": (lambda _: run("python -m tests.figures --help"), "", "usage"),
        "pytest tests/test_shipped.py -s": (run, " --collect-only", "test"),
    }
    used = set()
    for command in commands():
        begin = max((way for way in ways if command.startswith(way)), key=len, default=None)
        assert begin, f"{command}: the README has a command that this test does not run"
        used.add(begin)
        way, behind, printed = ways[begin]
        for name, path in own_files.items():
            command = re.sub(rf"(?<![\w/]){re.escape(name)}(?!\w)", path, command)
        assert printed in way(command + behind), command
    assert used == set(ways)


def test_the_page_around_the_model_that_the_readme_names(tmp_path: Path) -> None:
    real_model(SMOLLM2)
    said = served(f"python build.py serve --model smollm2 --out {tmp_path / 'dist'} --port 0")
    assert "Serving at http://localhost:" in said
    assert len(list((tmp_path / "dist/assets").glob("SmolLM2-*.gguf"))) == 1


def test_the_conversation_of_the_readme() -> None:
    real_model(SMOLLM2)
    (command,) = (command for command in commands() if command.startswith("python -m fabella chat"))
    assert "Hello" in run(f"echo 'Hi! Who are you?' | {command} -t 0 -n 20")


def programs() -> list[str]:
    """The README's Python."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def test_the_programs_of_the_readme(tmp_path: Path) -> None:
    story, chat, pyodide = programs()
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(real_model(SMOLLM2))
    (tmp_path / "web").symlink_to(ROOT / "web")
    told = []
    for program in (story, chat):
        (tmp_path / "program.py").write_text(program)
        told.append(run(f"cd {tmp_path} && PYTHONPATH={ROOT / 'py'} python program.py"))
    assert told[0].startswith("Once upon a time")
    assert "The sky appears blue" in told[1]
    assert '{"capital": "Paris' in told[1]
    assert "micropip.install" in pyodide  # tests/test_api.py does that
