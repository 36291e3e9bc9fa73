#!/usr/bin/env python3
"""Build Fabella's static page; serve it; test everything.

    python build.py                 bundle the page into dist/
    python build.py serve           bundle, then serve it on this machine
    python build.py test            bundle, then run every check and test, a real browser's included
    python build.py check           check the sources alone: mistakes, types, form; --fix mends what it can
    python build.py bench           bundle, then measure it beside its peers; --help says more
    python build.py setup           only install: .venv/ then has all that training and the command line need
    python build.py --model FILE    bundle the page around another model; --model smollm2 downloads one

What is missing is installed on the way (into .venv/ and node_modules/; on Debian as root also with apt-get), and what
has not changed since the last run is reused. The same inputs make the same dist/, byte for byte.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("build.py: Python 3.11 or later is needed")
sys.path.insert(0, str(Path(__file__).resolve().parent / "py"))

from builder.check import check
from builder.engines import build_engines
from builder.install import ensure_browsers, ensure_chromium, ensure_fuzzer, ensure_node_packages, ensure_python
from builder.models import KNOWN, model_file
from builder.page import bundle
from builder.serve import find_address, listen, serve
from builder.tools import PYTHON, ROOT, WEB, BuildError, say
from fabella.card import metadata_of
from fabella.console import run_command
from fabella.errors import FabellaError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    page = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    page.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="GGUF, llama2.c's .bin, or the name of a model that is downloaded: "
        f"{', '.join(KNOWN)} (default web/models/stories.gguf)",
    )
    page.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.bin, for a .bin model")
    page.add_argument("--adapter", type=Path, metavar="FILE", help="an adapter (LoRA) for the model, GGUF")
    page.add_argument("--title", help="of the page (default: the model's own)")
    page.add_argument(
        "--about", metavar="TEXT", help="what the page is, in one or two sentences (default: the model's)"
    )
    page.add_argument(
        "--beginning",
        dest="beginnings",
        action="append",
        metavar="TEXT",
        help="how a story may begin (default: the model's); may be given several times",
    )
    page.add_argument("--url", help="where the page will be, so that whoever shares it shows its picture")
    page.add_argument("--language", metavar="TAG", help="of the page, as en or pt-BR (default: the model's)")
    page.add_argument(
        "--offer",
        dest="offers",
        action="append",
        metavar="FILE_OR_URL",
        help="another model that the page offers: a GGUF file, which is copied beside it, the name of one that is "
        "downloaded, or an https:// URL, which the page may then ask; may be given several times",
    )
    page.add_argument(
        "--connect",
        dest="hosts",
        action="append",
        metavar="ORIGIN",
        help="a host, as https://models.example.org, of which visitors may open models by their address; "
        "may be given several times",
    )
    page.add_argument(
        "--no-offline",
        dest="offline",
        action="store_false",
        help="build a page that is not kept on its visitors' machines, and is removed from where it was",
    )
    page.add_argument("--out", type=Path, metavar="DIR", help="folder of the built page (default dist)")

    main = argparse.ArgumentParser(
        description="Bundle Fabella's static page. What is missing is installed, what is unchanged is reused.",
        parents=[page],
        allow_abbrev=False,
    )
    main.set_defaults(
        command="bundle", model=WEB / "models/stories.gguf", tokenizer=None, adapter=None, out=ROOT / "dist"
    )
    main.set_defaults(
        title=None, about=None, beginnings=None, language=None, url=None, offers=[], hosts=[], offline=True
    )
    commands = main.add_subparsers(title="more commands", metavar="command")
    text = "bundle the page, then serve it on this machine"
    serving = commands.add_parser("serve", help=text, description=text.capitalize() + ".", parents=[page])
    serving.set_defaults(command="serve")
    serving.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default 127.0.0.1; 0.0.0.0 lets other machines visit)",
    )
    serving.add_argument("--port", type=int, help="port to listen on (default: the first free one from 8000 on)")
    text = "install what training, the command line and the tests need into .venv/, and compile the engine"
    commands.add_parser("setup", help=text, description=text.capitalize() + ".").set_defaults(command="setup")
    text = "bundle the page, then run every check and test; arguments are handed to pytest, and only its tests run then"
    testing = commands.add_parser("test", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    testing.usage = "build.py test [-h] [pytest arguments ...]"
    testing.set_defaults(command="test")
    text = "check the sources: mistakes and types, and the form of C, Python, JavaScript, CSS and HTML"
    checking = commands.add_parser("check", help=text, description=text.capitalize() + ".")
    checking.set_defaults(command="check")
    checking.add_argument("--fix", action="store_true", help="mend what the checkers can mend")
    text = "bundle the page, then measure it beside its peers in one browser; takes half an hour, --quick two minutes"
    measuring = commands.add_parser("bench", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    measuring.usage = "build.py bench [-h] [--quick] [--models MODEL ...] [--rounds N] [--threads N]"
    measuring.set_defaults(command="bench")
    return main


def command() -> int:
    """Do what the command line says; return the exit status."""
    arguments, others = parser().parse_known_args()
    if others and arguments.command not in ("test", "bench"):
        parser().error(f"unrecognized arguments: {' '.join(others)}")
    if arguments.command == "setup":
        ensure_python("requirements-dev.txt")
        build_engines()
        say("Ready: source .venv/bin/activate")
        return 0
    if arguments.command == "check":
        ensure_python("requirements-dev.txt")
        ensure_node_packages()
        check(arguments.fix)
        return 0
    if arguments.command == "serve":
        find_address(arguments.host, arguments.port)
    words = metadata_of(arguments.title, arguments.about, arguments.beginnings, arguments.language)
    bundle(
        model_file(arguments.model),
        arguments.tokenizer,
        arguments.out,
        words,
        arguments.offers,
        arguments.hosts,
        arguments.offline,
        arguments.url,
        arguments.adapter,
    )
    if arguments.command == "serve":
        serve(listen(arguments.out, arguments.port, arguments.host), arguments.host)
    if arguments.command == "test":
        return test(others)
    if arguments.command == "bench":
        return bench(others, arguments.out)
    return 0


def test(pytest_arguments: list[str]) -> int:
    """Install what testing needs, check the sources and run the tests; return pytest's exit status."""
    ensure_python("requirements-dev.txt")
    ensure_browsers()
    ensure_fuzzer()
    if not pytest_arguments:
        check()
        # Each of the processes has browsers of its own.
        pytest_arguments = ["--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"]
    return subprocess.run([PYTHON, "-m", "pytest", *pytest_arguments], cwd=ROOT, check=False).returncode


def bench(bench_arguments: list[str], dist: Path) -> int:
    """Install what the benchmark needs and run it on the built page; return its exit status."""
    ensure_python("requirements-dev.txt")
    ensure_chromium()
    try:
        ensure_python("tests/bench/requirements-bench.txt")
    except BuildError as error:
        say(f"Going on without what cannot be installed: {error}")
    command = [str(PYTHON), "-m", "tests.bench", "--dist", str(dist.resolve()), *bench_arguments]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while True:
            with suppress(KeyboardInterrupt):  # the benchmark hears Ctrl-C as well, and comes to its own end
                return process.wait()


if __name__ == "__main__":
    sys.exit(run_command("build.py", command, errors=(BuildError, FabellaError, OSError)))
