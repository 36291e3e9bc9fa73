"""Python for the page as bytecode, of which the page compiles nothing. This module runs inside Pyodide."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch

# Modules of Python's standard library that a page has no use for: half of its bytes. "/*" takes the whole package.
UNUSED_STDLIB = """
    */__main__ __hello__ __phello__/* _pyio _pydatetime _pyrepl/* antigravity this
    bdb cProfile compileall doctest modulefinder pdb profile pstats pyclbr pydoc tabnanny trace unittest/*
    asyncio/proactor_events asyncio/windows_* concurrent/futures/process multiprocessing/* pty tty
    email/* ftplib http/* imaplib mailbox mimetypes netrc poplib smtplib socketserver webbrowser wsgiref/* xmlrpc/*
    configparser ctypes/* logging/config logging/handlers optparse pickletools plistlib sqlite3/* wave xml/* zipapp
    encodings/big5* encodings/cp[0235-9]* encodings/cp424 encodings/cp1[01]* encodings/cp125[013-8] encodings/euc_*
    encodings/gb* encodings/hp_* encodings/hz encodings/iso* encodings/johab encodings/koi8* encodings/kz*
    encodings/mac_* encodings/mbcs encodings/oem encodings/palmos encodings/ptcp* encodings/shift_* encodings/tis_*
    encodings/_win* nturl2path
""".split()


def compile_zip(source: str, target: str, folder: str, unused: Sequence[str], optimize: int) -> None:
    """Write the modules of a zip file as bytecode into another.

    Parameters
    ----------
    source, target
        The files.
    folder
        Where Python will find the modules.
    unused
        Patterns of the names of those that are left out.
    optimize
        As Python's compile() takes it: 2 leaves docstrings out.
    """
    from importlib._bootstrap_external import _code_to_hash_pyc  # type: ignore[attr-defined]

    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in sorted(old.namelist()):
            if not name.endswith(".py") or any(fnmatch(name.removesuffix(".py"), pattern) for pattern in unused):
                continue
            text = old.read(name)
            code = compile(text, f"{folder}/{name}", "exec", dont_inherit=True, optimize=optimize)
            entry = zipfile.ZipInfo(name + "c")  # dated 1980, so that the same input makes the same file
            entry.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(entry, _code_to_hash_pyc(code, importlib.util.source_hash(text), False), compresslevel=9)
