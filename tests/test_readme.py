"""The README's commands do what it says: each is run, with files of the test's own and less work.

Of those that run for long, these tests among them, only what they are told is tried.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from builder.tools import ROOT

from .documents import QUICK, Way, check_commands, commands, programs, run, served
from .real_models import SMOLLM2, real_model

README = "README.md"
TEXT = "Once upon a time there was a little fox. She found a tiny door in an old tree, and knocked.\n<|endoftext|>\n"


def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / "my-stories.txt").write_text(TEXT * 60)
    names = "my-stories.txt out/mine out/two mine.gguf new.gguf SmolLM2-360M-Instruct smollm2-360m.gguf".split()
    own_files = {name: str(tmp_path / name) for name in names}
    own_files["FILE"] = str(ROOT / "web/models/stories.gguf")
    dist = f" --out {tmp_path / 'dist'}"
    look = cache(run)  # for commands that leave nothing behind and stand there more than once

    def converted(command: str) -> str:
        run(f"python -m train.convert {own_files['out/mine']} -o {own_files['SmolLM2-360M-Instruct']}")
        return run(command)

    ways: dict[str, Way] = {
        "python build.py setup && source": (run, "", "Ready"),
        "python -m train.train my-stories.txt": (run, f" {QUICK}", "Done"),
        "python -m train.export": (run, "", "bytes"),
        "python -m train.sample": (run, " -n 20 -s 1", ""),
        "python -m train.evaluate": (run, f" {own_files['out/mine']} {own_files['my-stories.txt']}", "bits per byte"),
        "torchrun": (run, f" {QUICK}", "Done: "),
        "python -m train.convert": (converted, "", "bytes"),
        "python -m fabella mine.gguf": (run, " -n 20 -s 1", "Once upon a time"),
        "python -m fabella info": (run, "", "Family"),
        "python build.py serve --model smollm2": (None, "", ""),  # a test of its own
        "python -m fabella chat": (None, "", ""),  # this as well
        "python -m hatchling build": (lambda command: run(command.replace("-d build", f"-d {tmp_path}")), "", ""),
        "python -m fabella web/models/stories.gguf": (run, "", "Once upon a time"),
        'echo "Once upon a time" | python -m fabella mine.gguf': (run, " -n 20 -s 1", "Once upon a time"),
        "python -m fabella": (run, " --help", "usage"),
        "python build.py": (lambda _: run(f"python build.py{dist}"), "", "Built"),
        "python build.py --model FILE": (run, dist, "Built"),
        "python build.py serve": (served, f"{dist} --port 0", "Serving at http://localhost:"),
        "python build.py check --fix": (lambda _: run("python build.py check"), "", ""),
        "python build.py test": (
            lambda command: look(command.replace("build.py test", "-m pytest --collect-only")),
            "",
            "test",
        ),
        "python build.py bench": (lambda _: look("python build.py bench --help"), "", "--quick"),
        "python -m tests.figures": (lambda _: look("python -m tests.figures --help"), "", "usage"),
        "pytest tests/test_shipped.py -s": (run, " --collect-only", "test"),
    }
    check_commands(README, ways, own_files)


def test_the_page_around_the_model_that_the_readme_names(tmp_path: Path) -> None:
    real_model(SMOLLM2)
    said = served(f"python build.py serve --model smollm2 --out {tmp_path / 'dist'} --port 0")
    assert "Serving at http://localhost:" in said
    assert len(list((tmp_path / "dist/assets").glob("SmolLM2-*.gguf"))) == 1


def test_the_conversation_of_the_readme() -> None:
    real_model(SMOLLM2)
    (command,) = (command for command in commands(README) if command.startswith("python -m fabella chat"))
    assert "Hello" in run(f"echo 'Hi! Who are you?' | {command} -t 0 -n 20")


def test_the_programs_of_the_readme(tmp_path: Path) -> None:
    story, chat, pyodide = programs(README)
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


DOCUMENTS = [path for folder in ("", "train", "wasm", "web/models") for path in sorted((ROOT / folder).glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(path)):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


def without_code(path: Path) -> str:
    """A document's text without its fenced code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """What a link to a heading of a document calls it, as GitHub has it."""
    headings = re.findall(r"^#+ (.+)$", without_code(path), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
