"""Checking the sources: mistakes, types and form, of C, Python, JavaScript, CSS and HTML."""

from __future__ import annotations

from pathlib import Path

from builder.tools import NODE_MODULES, PYTHON, ROOT, BuildError, run, say

C_SOURCES = ("wasm/*.[ch]", "tests/*.[ch]", "tests/bench/*.c")
WEB_SOURCES = (
    "web/*.js",
    "web/views/*.js",
    "web/rooms/*.js",
    "web/rooms/*/*",
    "web/*.css",
    "web/*.html",
    "py/builder/*.mjs",
)
BENCH_SOURCES = ("tests/bench/*.mjs", "tests/bench/web/*")


def check(fix: bool = False) -> None:
    """Check all sources, or mend what the checkers can mend. Raises BuildError with what is left, by checker."""
    say(f"{'Mending' if fix else 'Checking'} the sources with ruff, mypy, tsc, clang-format and prettier ...")
    prettier = NODE_MODULES / "prettier/bin/prettier.cjs"
    commands: dict[str, list[str | Path]] = {
        "ruff check": [PYTHON, "-m", "ruff", "check", *(["--fix"] if fix else [])],
        "ruff format": [PYTHON, "-m", "ruff", "format", *([] if fix else ["--diff"])],
        "clang-format": [PYTHON.parent / "clang-format", *(["-i"] if fix else ["--dry-run", "--Werror"])],
        "prettier": ["node", prettier, "--log-level=warn", "--write" if fix else "--check"],
        "mypy": [PYTHON, "-m", "mypy"],
        "tsc": ["node", NODE_MODULES / "typescript/bin/tsc", "--project", "web/jsconfig.json"],
    }
    commands["clang-format"] += files(C_SOURCES)
    commands["prettier"] += files(WEB_SOURCES + BENCH_SOURCES)
    complaints = []
    for name, command in commands.items():
        try:
            run(*command)
        except BuildError as error:
            complaints.append(f"{name}:\n{str(error).split(chr(10), 2)[-1]}")
    if complaints:
        advice = "" if fix else "\npython build.py check --fix mends what is only form."
        raise BuildError("the sources are not clean.\n\n" + "\n\n".join(complaints) + "\n" + advice)


def files(patterns: tuple[str, ...]) -> list[str | Path]:
    """The files of the repository that a pattern is for."""
    return [file for pattern in patterns for file in sorted(ROOT.glob(pattern))]
