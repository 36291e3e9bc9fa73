"""Samplers to read and to change: the sampler's own source, and a shelf of examples. live.py runs them.

Each is a file of its own beside this one, whose first line says what it is. `chain.py` is the sampler: a function from
logits to a token that picks as :class:`fabella.sampler.Sampler` does, to the bit. What a visitor sees of it has the
functions that it imports from sampler.py written out, so that they can be changed, too.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from pathlib import Path

from fabella import live, sampler

FOLDER = Path(__file__).parent
EXAMPLES = ("plain", "min_p", "typical", "mirostat", "top_n_sigma", "no_e", "rhyme", "contrast", "expression")
SAMPLER = "fabella.sampler"


def texts() -> dict[str, object]:
    """Return what the editor shows: ``{"chain": source, "examples": [{"title", "source"}, …], "help": text}``."""
    examples = []
    for name in EXAMPLES:
        source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        title = (ast.get_docstring(ast.parse(source)) or name).partition(":")[0]
        examples.append({"title": title, "source": source})
    return {"chain": chain(), "examples": examples, "help": inspect.getdoc(live.LiveLogits)}


def chain() -> str:
    """Return the sampler's own source, from logits to a token: chain.py with sampler.py's functions written out."""
    source, whole = (FOLDER / "chain.py").read_text(encoding="utf-8"), inspect.getsource(sampler)
    tree, module = ast.parse(source), ast.parse(whole)
    (imported,) = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == SAMPLER)
    defined = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    wanted, used = [alias.name for alias in imported.names], set()
    for name in wanted:  # which grows
        used |= names_in(defined[name])
        wanted += sorted(defined.keys() & names_in(defined[name]) - set(wanted))
    functions = [node for name, node in defined.items() if name in wanted]
    lines = source.splitlines()
    heading, *before = lines[: imported.lineno - 1]
    own, others = imports(module, used)
    return "\n".join(
        [
            heading,
            "",
            *sorted({*filter(None, before), *own}, key=lambda line: (line.startswith("from"), line)),
            "",
            *sorted(others),
            *lines[imported.end_lineno :],
        ]
        + [f"\n\n{ast.get_source_segment(whole, function)}" for function in functions]
        + [""]
    )


def names_in(function: ast.FunctionDef) -> set[str]:
    """Return the names that a function looks at when it runs: not those that say of what type something is."""
    types = {
        id(name)
        for node in ast.walk(function)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation
        for name in ast.walk(annotation)
    }
    return {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and id(node) not in types}


def imports(module: ast.Module, used: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the imports of these names, were they wanted in another module: Python's own and ours, by the line."""
    own: list[str] = []
    ours: list[str] = []
    constants: list[str] = []
    for node in module.body:
        if isinstance(node, ast.Import):
            own += [f"import {alias.name}" for alias in node.names if alias.name in used]
        elif isinstance(node, ast.ImportFrom):
            if names := [alias.name for alias in node.names if alias.name in used]:
                line = f"from {node.module} import {', '.join(names)}"
                (ours if str(node.module).startswith("fabella") else own).append(line)
        elif isinstance(node, ast.Assign):
            constants += [name.id for name in node.targets if isinstance(name, ast.Name) and name.id in used]
    return own, [*ours, *([f"from {SAMPLER} import {', '.join(sorted(constants))}"] if constants else [])]
