"""build.py: what it puts into the page, what it leaves alone, and what it says when it cannot go on."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import builder.assets
import builder.engines
import builder.install
import builder.page
import builder.python
import builder.serve
import builder.tools
from builder.tools import ROOT, BuildError
from fabella.generate import generate
from fabella.llama2c import convert_llama2c
from fabella.modelfile import Config
from fabella.sampler import Settings

from .llama2c_files import model_bin, tokenizer_bin
from .random_models import load, write_random_model

SHARED = ROOT.parent / "shared"
SMALL = Config(dim=32, hidden_dim=32, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=300, seq_len=64)
OLD_PAGE = b'<script type="application/json" id="assets">{"model": {}}</script> the old page'


@pytest.fixture(scope="module")
def dist(built: Callable[[Path], Path], random_model: Path) -> Path:
    """A built page, which no test changes."""
    return built(random_model)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_build(*arguments: str | Path, root: Path = ROOT, status: int = 0) -> str:
    """Run build.py as a builder does and return what it printed."""
    command: list[str | Path] = [sys.executable, root / "build.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def assets(dist: Path) -> dict[str, Any]:
    """What index.html tells the page about its parts."""
    found = re.search(r'<script type="application/json" id="assets">(.*?)</script>', (dist / "index.html").read_text())
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


# ---- The page --------------------------------------------------------------------------------------------------------


def test_the_same_inputs_make_the_same_bytes(dist: Path, random_model: Path, tmp_path: Path) -> None:
    """A copy of the repository elsewhere, which reuses only the installed packages, builds the very same page."""
    copy = tmp_path / "copy"
    made = shutil.ignore_patterns("run-*.wasm", "__pycache__", "*_cache", ".bu*")
    made_here = {".git", ".venv", "build", "dist", "out"}  # installed packages may have folders of these names

    def ignored(folder: str, names: list[str]) -> set[str]:
        return made(folder, names) | (made_here if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, copy, ignore=ignored, symlinks=True)
    (copy / ".venv").symlink_to(builder.tools.VENV)
    run_build("--model", random_model, "--out", tmp_path / "again", root=copy)
    assert contents(tmp_path / "again") == contents(dist)
    assert not list(copy.glob(".building-*"))


def test_has_exactly_the_files_that_the_page_needs(dist: Path, random_model: Path) -> None:
    version = json.loads((builder.tools.NODE_MODULES / "pyodide/package.json").read_text())["version"]
    patterns = [
        *("index.html", r"LICENSES\.txt", r"sw\.js", r"fabella\.js"),
        *(rf"pyodide-{version}/{name}" for name in builder.python.PYODIDE_FILES),
        *(rf"assets/{name}-\w+\.js" for name in ("app", "worker", "helper", *builder.page.ROOMS)),
        *(rf"assets/run-{name}-\w+\.wasm" for name in builder.engines.ENGINES),
        *(r"assets/favicon-\w+\.svg", r"assets/icon-192-\w+\.png", r"assets/icon-512-\w+\.png"),
        *(r"assets/share-\w+\.png", r"assets/manifest-\w+\.webmanifest"),
        *(r"assets/python-\w+\.bin", r"assets/python-stdlib-\w+\.zip", r"assets/python-further-\w+\.zip"),
        r"assets/random-\w+\.gguf",
    ]
    names = {name for name in contents(dist) if not name.endswith((".br", ".gz"))}
    for pattern in patterns:
        (name,) = (name for name in names if re.fullmatch(pattern, name))
        names.remove(name)
    assert not names


def test_names_every_part_by_its_content(dist: Path, random_model: Path) -> None:
    parts = assets(dist)
    model, engines, python = parts["model"], parts["engines"], parts["python"]
    assert model["file"] == "random.gguf"
    assert model["id"] == hashlib.sha256(random_model.read_bytes()).hexdigest()
    assert (dist / model["url"]).read_bytes() == random_model.read_bytes()
    assert builder.tools.digest(random_model) in model["url"]
    assert engines.keys() == builder.engines.ENGINES.keys()
    for name, engine in engines.items():
        assert engine["url"] == f"assets/run-{name}-{builder.tools.digest(dist / engine['url'])}.wasm"
    lock = json.loads((builder.tools.NODE_MODULES / "pyodide/pyodide-lock.json").read_text())
    assert python.pop("info") == lock["info"]
    assert python.keys() == {"script", "wasm", "snapshot", "stdlib", "further"}
    for part in (parts["worker"], parts["helper"], model, *engines.values(), *python.values()):
        data = (dist / part["url"]).read_bytes()
        assert part["bytes"] == len(data)
        blocks = [data[at : at + 2**20] for at in range(0, len(data), 2**20)]
        if part not in (parts["worker"], python["wasm"]):
            assert part["sha256"] == [hashlib.sha256(block).hexdigest() for block in blocks]


def test_compressed_copies_are_beside_what_they_make_smaller(dist: Path, tmp_path: Path) -> None:
    """By a tenth or more; and never beside a model, of which downloads ask for parts."""
    files = contents(dist)
    unpack = """
        import { readFileSync, writeFileSync } from "node:fs";
        import { brotliDecompressSync } from "node:zlib";
        const [source, target] = process.argv.slice(1);
        writeFileSync(target, brotliDecompressSync(readFileSync(source)));
    """
    for name, data in files.items():
        if name.endswith((".br", ".gz")):
            continue
        gz, br = files.get(f"{name}.gz"), files.get(f"{name}.br")
        if name.endswith(".gguf"):
            assert gz is br is None
            continue
        worthwhile = len(gzip.compress(data, 9, mtime=0)) <= 0.9 * len(data)
        assert (gz is not None) == worthwhile, name
        if gz:
            assert gzip.decompress(gz) == data
            assert gz[4:8] == bytes(4), "no date is in it"
        if br:
            assert len(br) <= 0.9 * len(data)
            target = tmp_path / "unpacked"
            subprocess.run(["node", "--input-type=module", "--eval", unpack, dist / f"{name}.br", target], check=True)
            assert target.read_bytes() == data
    for name in ("index.html", "LICENSES.txt", f"{next(dist.glob('pyodide-*')).name}/pyodide.asm.wasm"):
        assert len(files[f"{name}.br"]) < len(files[f"{name}.gz"]) < len(files[name])


def version_of(dist: Path) -> str:
    """What index.html says of its version."""
    (version,) = re.findall(r'<meta name="version" content="(\w+)" />', (dist / "index.html").read_text())
    return str(version)


def test_the_service_worker_knows_every_file_of_its_version(dist: Path) -> None:
    first = (dist / "sw.js").read_text().partition(";\n")[0]
    page = json.loads(first.removeprefix("globalThis.page = "))
    assert page["version"] == version_of(dist)
    others = {"sw.js", "fabella.js"}
    expected = {name: data for name, data in contents(dist).items() if not name.endswith((".br", ".gz", ".gguf"))}
    assert page["files"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in expected.items() if name not in others
    }


def test_another_page_is_another_version(dist: Path, tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "random.gguf", SMALL, type="Q8_0")
    builder.page.bundle(model, None, tmp_path / "dist")
    assert version_of(tmp_path / "dist") != version_of(dist)


def test_without_offline_use_the_service_worker_is_the_one_that_goes(random_model: Path, tmp_path: Path) -> None:
    run_build("--no-offline", "--model", random_model, "--out", tmp_path / "dist")
    assert assets(tmp_path / "dist")["offline"] is False
    script = (tmp_path / "dist/sw.js").read_text()
    assert "unregister()" in script
    assert '"fetch"' not in script
    run_build("--model", random_model, "--out", tmp_path / "dist")  # in the place of that page
    assert assets(tmp_path / "dist")["offline"] is True


def test_the_style_is_in_the_page_and_its_policy_knows_it(dist: Path) -> None:
    page = (dist / "index.html").read_text(encoding="utf-8")
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    sha256 = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{sha256}';" in builder.serve.content_security_policy(page)
    assert "--paper" in style
    assert "stylesheet" not in page


def test_no_file_of_ours_names_another_origin(dist: Path) -> None:
    ours = [path for path in dist.rglob("*") if path.suffix in (".html", ".svg")]
    # In the conversation's room the Markdown parser knows what an address looks like; the code's shows a source.
    ours += [path for path in (dist / "assets").glob("*.js") if not path.name.startswith(("chat-", "code-"))]
    assert len(ours) >= 5
    for path in ours:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, never fetched
        text = text.replace("https://cdn.jsdelivr.net/pyodide/v", "")  # Pyodide's default, which python.js overrides
        text = re.sub(r"https://github\.com/|https://(pyodide|bugzilla|tc39|developer)\S+", "", text)
        assert not re.search(r"""https?:|["'(]//""", text), path.name


def test_names_the_licences_of_what_it_contains(dist: Path) -> None:
    text = (dist / "LICENSES.txt").read_text()
    pyodide = json.loads((builder.tools.NODE_MODULES / "pyodide/package.json").read_text())["version"]
    assert f"Pyodide {pyodide}" in text
    (holder,) = re.findall(r"Copyright .*", (builder.tools.NODE_MODULES / "@noble/hashes/LICENSE").read_text())
    assert holder in text
    for licence in (
        "MIT License",
        "Marijn Haverbeke <marijn@haverbeke.berlin> and others",
        "Mozilla Public License Version 2.0",
        "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
        f"Jinja {version('jinja2')}",
        f"MarkupSafe {version('markupsafe')}",
    ):
        assert licence in text


def test_the_snapshot_does_not_depend_on_chance_or_time(tmp_path: Path) -> None:
    """Or on what the environment says. What Python takes from there, it takes anew in the page."""
    stdlib, program = builder.python.build_stdlib(), builder.python.build_program()
    taken = builder.python.build_snapshot(stdlib, program)
    elsewhere = {"TZ": "Asia/Kathmandu", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "7", "HOME": str(tmp_path)}
    script = """
        import sys
        from pathlib import Path
        from builder.python import take_snapshot
        take_snapshot(*map(Path, sys.argv[1:]))"""
    command = [sys.executable, "-c", dedent(script), *map(str, (stdlib, program, tmp_path / "again.bin"))]
    environment = os.environ | elsewhere | {"PYTHONPATH": str(ROOT / "py")}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "again.bin").read_bytes() == taken.read_bytes()


def test_pyodide_that_has_changed_is_not_changed_blindly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builder.python.PYODIDE_CHANGES, "function nobodyHas(", "")
    with pytest.raises(BuildError, match=r"Pyodide has changed: pyodide.asm.mjs does not have 'function nobodyHas\('"):
        builder.python.pyodide_script()


def test_stdlib_is_bytecode_that_python_takes_as_it_is(dist: Path) -> None:
    (path,) = (dist / "assets").glob("python-stdlib-*.zip")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        assert {"json/__init__.pyc", "asyncio/__init__.pyc", "random.pyc", "encodings/cp437.pyc"} <= names
        assert not {"email/__init__.pyc", "unittest/__init__.pyc", "encodings/big5.pyc"} & names
        for name in names:
            assert name.endswith(".pyc")
            magic, flags = archive.read(name)[:4], archive.read(name)[4:8]
            assert magic[2:] == b"\r\n"
            assert flags == b"\x01\0\0\0", "by hash, and never compared with a source"
    assert path.stat().st_size < 2_600_000


# ---- The wheel -------------------------------------------------------------------------------------------------------


def make_wheel(folder: Path) -> Path:
    """As the README says."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_and_the_engine(wheel: Path, dist: Path) -> None:
    sources = {path.relative_to(ROOT / "py").as_posix() for path in (ROOT / "py/fabella").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        others = {"fabella/py.typed", "fabella/run.wasm", "fabella/look.ipynb"}
        assert sources | others == {name for name in names if name.startswith("fabella/")}
        (engine,) = (dist / "assets").glob("run-simd-*.wasm")
        assert archive.read("fabella/run.wasm") == engine.read_bytes()
        metadata = archive.read("fabella-0.1.0.dist-info/METADATA").decode()
    assert "License-Expression: MIT" in metadata
    assert re.search(r"Requires-Dist: wasmtime.*; sys_platform != .emscripten.", metadata)
    assert "Requires-Dist: jinja2" in metadata


@pytest.mark.parametrize("source", ["wheel", "repository"])
def test_pip_installs_it(wheel: Path, random_model: Path, tmp_path: Path, source: str) -> None:
    what = wheel if source == "wheel" else ROOT
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path), str(what)], check=True)
    command = [sys.executable, "-m", "fabella", str(random_model), "-i", "Hello", "-t", "0", "-n", "20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Hello")


# ---- Other models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "magic"),
        (b"GGUF\x07\0\0\0" + bytes(16), "version 7"),
        (b"once upon a time", "magic"),
        (None, "No such file"),
    ],
)
def test_a_bad_model_leaves_the_old_page_alone(tmp_path: Path, data: bytes | None, said: str) -> None:
    out = tmp_path / "dist"
    out.mkdir()
    (out / "index.html").write_bytes(OLD_PAGE)
    model = tmp_path / "bad.gguf"
    if data is not None:
        model.write_bytes(data)
    printed = run_build("--model", model, "--out", out, status=1)
    assert str(model) in printed
    assert said in printed
    assert contents(out) == {"index.html": OLD_PAGE}
    assert not list(tmp_path.glob(".building-*"))


def test_a_llama2c_model_without_its_tokenizer(tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    model.write_bytes(model_bin())
    assert "needs --tokenizer" in run_build("--model", model, "--out", tmp_path / "dist", status=1)


def test_a_tokenizer_beside_a_model_that_has_one(random_model: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.bin"
    tokenizer.write_bytes(tokenizer_bin())
    with pytest.raises(BuildError, match="leave --tokenizer out"):
        builder.page.model_as_gguf(random_model, tokenizer, tmp_path)


def test_a_llama2c_model_becomes_the_same_model_as_gguf(tmp_path: Path) -> None:
    model, tokenizer = tmp_path / "small.bin", tmp_path / "tokenizer.bin"
    model.write_bytes(model_bin())
    tokenizer.write_bytes(tokenizer_bin())
    run_build("--model", model, "--tokenizer", tokenizer, "--out", tmp_path / "dist")
    (gguf,) = (tmp_path / "dist/assets").glob("small-*.gguf")
    _, read = load(gguf)
    assert read.name == "small"
    assert sum(tensor.size for tensor in read.tensors.values()) <= len(model.read_bytes())


def test_stories260k_as_gguf_tells_the_story_in_its_readme(tmp_path: Path) -> None:
    models = SHARED / "models"
    if not (models / "stories260K.bin").exists():
        pytest.skip("needs ../shared/models/stories260K.bin")
    gguf = tmp_path / "stories260K.gguf"
    convert_llama2c(models / "stories260K.bin", models / "tok512.bin", gguf)
    engine, model = load(gguf)
    steps = list(generate(engine, model.tokenizer, "", Settings(temperature=0.0, seed=1), 200))
    text = "".join(step.text for step in steps).strip()
    readme = " ".join((models / "README.md").read_text().replace("> ", "").split())
    assert len(text) > 300
    assert " ".join(text.split()) in readme


# ---- Serving ---------------------------------------------------------------------------------------------------------


def test_serves_until_ctrl_c(random_model: Path, tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, ROOT / "build.py", "serve", "--model", random_model, "--out", tmp_path / "dist"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell lets its background jobs ignore Ctrl-C; here it is what the test is about.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert server.stdout
        line = next(line for line in server.stdout if line.startswith("Serving at "))
        host, port = re.fullmatch(r"Serving at http://(\w+):(\d+)/ .*\n", line).groups()  # type: ignore[union-attr]
        connection = http.client.HTTPConnection(host, int(port))

        def get(path: str) -> tuple[http.client.HTTPResponse, bytes]:
            connection.request("GET", f"/{path}")
            response = connection.getresponse()
            return response, response.read()

        response, body = get("")
        policy = re.search(rb'content="(default-src [^"]+)"', body)
        assert policy
        assert response.headers["Content-Security-Policy"] == policy[1].decode()
        for name, type in {
            ".wasm": "application/wasm",
            "worker-*.js": "text/javascript",
            "manifest-*.webmanifest": "application/manifest+json",
            ".mjs": "text/javascript",
        }.items():
            path = next((tmp_path / "dist").rglob(f"*{name}")).relative_to(tmp_path / "dist")
            response, body = get(str(path))
            assert response.headers["Content-Type"] == type
            assert response.headers["Content-Security-Policy"]
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert body == (tmp_path / "dist" / path).read_bytes()
        assert get("../build.py")[0].status == 404

        server.send_signal(signal.SIGINT)
        rest = server.stdout.read()
        assert server.wait() == 0
        assert "Traceback" not in rest
    finally:
        server.kill()


def test_only_files_named_by_their_content_are_kept_for_ever(dist: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    shutil.copytree(dist, page)
    with builder.serve.listen(page, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)

        def cache_control(path: str) -> tuple[int, str | None]:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.headers["Content-Security-Policy"]
            return response.status, response.headers["Cache-Control"]

        forever = "max-age=31536000, immutable"
        engine = next(page.glob("assets/run-*.wasm")).name
        pyodide = next(page.glob("pyodide-*")).name
        assert cache_control(f"/assets/{engine}") == (200, forever)
        assert cache_control(f"/{pyodide}/pyodide.asm.mjs") == (200, forever)
        assert cache_control("/") == (200, "no-cache")
        assert cache_control("/sw.js") == (200, "no-cache")
        assert cache_control("/fabella.js") == (200, "no-cache")
        assert cache_control("/?/assets/") == (200, "no-cache")
        assert cache_control("/assets/") == (404, "no-cache"), "no folder is listed"
        assert cache_control("/assets/run-0.wasm") == (404, "no-cache")
        (page / "index.html").unlink()  # as while a new page is put in the place of the old one
        assert cache_control("/index.html") == (404, "no-cache")
        assert cache_control(f"/assets/{engine}") == (200, forever)
        server.shutdown()


def test_serves_at_another_address(dist: Path, random_model: Path, tmp_path: Path) -> None:
    with builder.serve.listen(dist, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
    words = ["serve", "--host=0.0.0.0", "--port=0", f"--model={random_model}", f"--out={tmp_path / 'dist'}"]
    with subprocess.Popen([sys.executable, ROOT / "build.py", *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = next((line for line in process.stdout if line.startswith("Serving at ")), "")
        process.terminate()
    assert f"http://{socket.gethostname()}:" in said


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--port", "99999", "--port 99999: a port is a number from 0 to 65535"),
        ("--port", "-1", "--port -1: a port is a number from 0 to 65535"),
        ("--host", "192.0.2.1", "--host 192.0.2.1: this machine cannot listen at that address"),  # nobody has it
        ("--host", "a..b", "--host a..b: this machine cannot listen at that address"),
        ("--host", "x" * 70, "this machine cannot listen at that address"),
    ],
)
def test_an_impossible_address_is_refused_before_the_page_is_built(
    tmp_path: Path, option: str, value: str, said: str
) -> None:
    assert said in run_build("serve", f"{option}={value}", "--out", tmp_path / "dist", status=1)
    assert not (tmp_path / "dist").exists()


def test_serves_at_an_address_of_the_newer_kind(dist: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with builder.serve.listen(dist, 0, "::1") as server:
        assert server.server_address[0] == "::1"


@pytest.mark.parametrize(
    "path", ["/%00", "/assets/%00.js", "/%ff%fe", "/" + "a" * 70_000, "//etc/passwd", "/%2e%2e/build.py", "/assets"]
)
def test_odd_requests_are_answered_and_say_nothing(dist: Path, capfd: pytest.CaptureFixture[str], path: str) -> None:
    with builder.serve.listen(dist, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        server.shutdown()
    status = int(answer.split()[1])
    assert status in (301, 400, 404, 414)
    assert b"import" not in answer
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_that_is_taken(dist: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BuildError, match=f"port {port} is taken: choose another with --port"):
            builder.serve.listen(dist, port)


def test_without_a_port_it_takes_the_next_free_one(dist: Path) -> None:
    with builder.serve.listen(dist, None) as first, builder.serve.listen(dist, None) as second:
        assert 8000 <= first.server_port < second.server_port


# ---- What build.py says and does on the way --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("", "--model"),
        ("serve", "--port"),
        ("setup", "training"),
        ("test", "pytest"),
        ("check", "--fix"),
        ("bench", "--quick"),
    ],
)
def test_help(command: str, word: str) -> None:
    printed = run_build(*command.split(), "--help")
    assert printed.startswith("usage: build.py")
    assert word in printed


@pytest.mark.parametrize("words", ["bench --help", "bench --quick -h", "test --help", "serve -h", "check -h"])
def test_help_neither_builds_nor_installs(words: str, tmp_path: Path) -> None:
    """In a copy where nothing has been made yet."""
    for name in ("build.py", "py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)
    before = contents(tmp_path)
    assert run_build(*words.split(), root=tmp_path).startswith("usage: build.py")
    assert {name for name in contents(tmp_path) if "__pycache__" not in name} <= set(before)


def test_unknown_arguments_are_refused() -> None:
    assert "unrecognized arguments: --modle=x" in run_build("--modle=x", status=2)


def test_a_folder_with_other_files_is_not_replaced(random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear ...")
    assert "holds other files" in run_build("--model", random_model, "--out", tmp_path, status=1)
    assert contents(tmp_path) == {"letter.txt": b"Dear ..."}


@pytest.mark.parametrize(
    "files",
    [
        {"index.html": b"<h1>My own page</h1>"},
        {"index.html": (builder.tools.WEB / "index.html").read_bytes(), "app.js": b""},
        {"index.html": OLD_PAGE, "CNAME": b"example.org"},
    ],
    ids=["another page", "the page's source", "a file beside the page"],
)
def test_what_it_has_not_built_is_not_replaced(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(builder.page, "ensure_python", lambda lock: pytest.fail("the work has begun"))
    with pytest.raises(BuildError, match=r"holds other files \(.*\): name a new folder with --out"):
        builder.page.bundle(random_model, None, tmp_path)
    assert contents(tmp_path) == files


def test_an_older_page_is_replaced(tmp_path: Path) -> None:
    for name in ("dist", "new"):
        (tmp_path / name / "assets").mkdir(parents=True)
        (tmp_path / name / "index.html").write_bytes(OLD_PAGE)
    page = OLD_PAGE + b'<script src="assets/old.js"></script>'
    (tmp_path / "dist/index.html").write_bytes(page)
    (tmp_path / "dist/assets/old.js").write_text("")
    (tmp_path / "dist/pyodide-314.0.7").mkdir()
    (tmp_path / "dist/pyodide-314.0.7/pyodide.mjs").write_text("")
    builder.page.swap(tmp_path / "new", tmp_path / "dist")
    assert contents(tmp_path) == {"dist/index.html": OLD_PAGE}


STRANGERS = [
    "assets/photo.jpg",
    "assets/photo.svg.gz",
    "notes.br",
    "pyodide-314.0.7/notes.txt",
    ".git/HEAD",
    ".nojekyll",
]


@pytest.mark.parametrize("name", [*STRANGERS, "x/y/z"])
def test_a_file_of_the_users_anywhere_in_an_older_page_is_kept(tmp_path: Path, name: str) -> None:
    file = tmp_path / "dist" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    (tmp_path / "dist/index.html").write_bytes(OLD_PAGE)
    with pytest.raises(BuildError, match=re.escape(f"holds other files ({name}): name a new folder")):
        builder.page.check_out(tmp_path / "dist")
    assert file.read_text() == "mine"


def test_left_overs_of_killed_builds_go_and_running_builds_stay(tmp_path: Path) -> None:
    building = "with builder.tools.scratch(pathlib.Path(sys.argv[1])) as folder: print(folder, flush=True); input()"
    command = [sys.executable, "-c", f"import builder.tools, pathlib, sys\n{building}", str(tmp_path)]
    pipe = subprocess.PIPE
    builds = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    try:
        folders = [Path((running.stdout.readline() if running.stdout else "").strip()) for running in builds]
        builds[0].kill()
        builds[0].wait()
        assert all(folder.exists() for folder in folders)
        with builder.tools.scratch(tmp_path):
            assert not folders[0].exists()
            assert folders[1].exists()
    finally:
        for running in builds:
            running.kill()
            running.communicate()


@pytest.mark.parametrize(
    "name", ["model.gguf?download=true", "a#b.gguf", "100%.gguf", "ü ö.gguf", "-x.gguf", ".gguf", "x" * 250]
)
def test_a_model_of_any_name_has_an_address_that_finds_it(random_model: Path, tmp_path: Path, name: str) -> None:
    model = tmp_path / name
    shutil.copyfile(random_model, model)
    (tmp_path / "assets").mkdir()
    url = builder.assets.publish(model, tmp_path, "{stem}-{hash}.gguf")
    assert re.fullmatch(r"assets/[\w.-]{1,120}\.gguf", url, re.ASCII)
    assert (tmp_path / unquote(urlsplit(url).path)).read_bytes() == model.read_bytes()


def test_a_model_that_the_page_would_refuse_is_refused(random_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(random_model.read_bytes()[:-4] + struct.pack("<f", float("nan")))
    said = run_build("--model", broken, "--out", tmp_path / "dist", status=1)
    assert f"build.py: {broken}: output_norm.weight: holds a value that is not a finite number" in said
    assert not (tmp_path / "dist").exists()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    for out in ("/proc/x/y", "/dev/null/x", "/dev/null"):
        said = run_build("--out", out, status=1)
        assert said.startswith("build.py: ")
        assert "Traceback" not in said


@pytest.mark.parametrize(
    "said",
    [
        "WARNING: Retrying ... NewConnectionError ... Name or service not known",
        "npm error code EAI_AGAIN",
        "E: Failed to fetch http://deb.debian.org/x  Temporary failure resolving 'deb.debian.org'",
    ],
)
def test_without_a_network_it_says_what_the_network_is_needed_for(said: str) -> None:
    command = [sys.executable, "-c", f"import sys; sys.exit({said!r})"]
    with pytest.raises(BuildError, match=r"^The compiler must be downloaded, and the network cannot be reached\."):
        builder.install.install("The compiler", *command)
    with pytest.raises(BuildError, match="this command failed"):
        builder.install.install("The compiler", sys.executable, "-c", "import sys; sys.exit('disk full')")


def test_a_venv_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text("#!/gone/python\n")
    python.chmod(0o755)
    monkeypatch.setattr(builder.install, "VENV", tmp_path)
    monkeypatch.setattr(builder.install, "PYTHON", python)
    with pytest.raises(BuildError, match="does not run: delete that folder and try again"):
        builder.install.ensure_python("requirements.txt")


@pytest.mark.parametrize("words", ["--help", "bench --help"])
def test_a_reader_that_leaves_ends_it_quietly(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "build.py", *words.split()]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("out", ["letter.txt", "letter.txt/dist"])
def test_a_file_is_no_folder_for_the_page(random_model: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "letter.txt").write_text("Dear ...")
    assert "letter.txt is a file: name a folder" in run_build(
        "--model", random_model, "--out", tmp_path / out, status=1
    )
    assert contents(tmp_path) == {"letter.txt": b"Dear ..."}


def test_torch_comes_without_cuda_and_its_size_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On Linux, PyTorch's own index is asked first; the package itself is linked whenever that is missing."""
    commands: list[str] = []

    def run(*command: str | Path) -> str:
        commands.append(shlex.join(map(str, command)))
        return f"{tmp_path}\n"

    monkeypatch.setattr(builder.install, "VENV", tmp_path)
    monkeypatch.setattr(builder.install, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(builder.install, "run", run)
    monkeypatch.setattr(sys, "platform", "linux")
    builder.install.ensure_python("requirements-dev.txt")
    torch, everything = (command for command in commands if "pip" in command)
    assert "--extra-index-url https://download.pytorch.org/whl/cpu torch==" in torch
    assert everything.endswith("-r requirements-dev.txt")
    assert "about 200 MB" in capsys.readouterr().out

    link = tmp_path / "fabella.pth"
    assert link.read_text() == f"{ROOT / 'py'}\n"
    link.unlink()
    builder.install.ensure_python("requirements-dev.txt")
    assert len([command for command in commands if "pip" in command]) == 2, "nothing is installed again"
    assert link.exists()


def test_an_old_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.install, "run", lambda *command: "v18.20.4\n")
    with pytest.raises(BuildError, match=r"Node.js v18.20.4 is too old: install version 20"):
        builder.install.ensure_node_packages()


def test_says_what_to_install_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match=r"emcc, is missing(.|\n)*emsdk install latest"):
        builder.install.ensure_emcc()
    with pytest.raises(BuildError, match=r"clang-19 and wasm-ld-19 are missing(.|\n)*install .* clang-19 lld-19"):
        builder.install.ensure_clang()
    monkeypatch.setattr(builder.install, "NODE_MODULES", Path("/nowhere"))
    with pytest.raises(BuildError, match=r"Node.js is missing: install version 20"):
        builder.install.ensure_node_packages()


def test_installs_from_apt_as_root_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(builder.install, "run", lambda *command: commands.append(" ".join(command)))
    assert builder.install.apt_install("Clang", "clang-19", "lld-19")
    assert capsys.readouterr().out == "Installing Clang with apt-get (clang-19 lld-19) ...\n"
    assert commands == ["apt-get update -q", "apt-get install -q -y --no-install-recommends clang-19 lld-19"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not builder.install.apt_install("Emscripten", "emscripten")


def test_makes_again_only_what_has_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builder.tools, "CACHE", tmp_path)
    made = []

    def make(target: Path) -> None:
        made.append(target)
        target.write_text("made")

    one = builder.tools.cached("thing.txt", "1", make)
    assert one.read_text() == "made"
    assert builder.tools.cached("thing.txt", "1", make) == one
    assert builder.tools.cached("thing.txt", "2", make) != one
    assert len(made) == 2

    def fail(target: Path) -> None:
        target.write_text("half")
        raise BuildError("no")

    with pytest.raises(BuildError):
        builder.tools.cached("thing.txt", "3", fail)
    assert {path.name for path in tmp_path.iterdir()} == {"thing-2.txt"}, "the older one is gone"


def test_a_command_that_fails_is_shown_with_its_words() -> None:
    with pytest.raises(BuildError, match=r"this command failed:\n.*\noh dear"):
        builder.tools.run(sys.executable, "-c", "import sys; sys.exit('oh dear')")
    with pytest.raises(BuildError, match="no-such-program is not installed"):
        builder.tools.run("no-such-program")
