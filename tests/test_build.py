"""build.py: what it puts into the page, what it leaves alone, and what it says when it cannot go on."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

import build
from fabella.generate import generate
from fabella.llama2c import convert_llama2c
from fabella.sampler import Settings

from .random_models import load
from .test_llama2c import model_bin, tokenizer_bin

SHARED = build.ROOT.parent / "shared"
OLD_PAGE = b'<script type="application/json" id="assets">{"model": {}}</script> the old page'


@pytest.fixture(scope="module")
def dist(built: Callable[[Path], Path], random_model: Path) -> Path:
    """A built page, which no test changes."""
    return built(random_model)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_build(*arguments: str | Path, root: Path = build.ROOT, status: int = 0) -> str:
    """Run build.py as a builder does and return what it printed."""
    command: list[str | Path] = [sys.executable, root / "build.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def assets(dist: Path) -> dict[str, object]:
    """What index.html tells the page about its parts."""
    found = re.search(r'<script type="application/json" id="assets">(.*?)</script>', (dist / "index.html").read_text())
    assert found
    data: dict[str, object] = json.loads(found[1])
    return data


# ---- The page --------------------------------------------------------------------------------------------------------


def test_the_same_inputs_make_the_same_bytes(dist: Path, random_model: Path, tmp_path: Path) -> None:
    """A copy of the repository elsewhere, which reuses only the installed packages, builds the very same page."""
    copy = tmp_path / "copy"
    made = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "out", "run-*.wasm", "__pycache__", "*_cache", ".bu*"
    )
    shutil.copytree(build.ROOT, copy, ignore=made, symlinks=True)
    (copy / ".venv").symlink_to(build.VENV)
    run_build("--model", random_model, "--out", tmp_path / "again", root=copy)
    assert contents(tmp_path / "again") == contents(dist)
    assert not list(copy.glob(".building-*"))


def test_has_exactly_the_files_that_the_page_needs(dist: Path, random_model: Path) -> None:
    version = json.loads((build.NODE_MODULES / "pyodide/package.json").read_text())["version"]
    patterns = [
        *("index.html", "LICENSES.txt"),
        *(rf"pyodide-{version}/{name}" for name in build.PYODIDE_FILES),
        *(rf"assets/{name}-\w+\.js" for name in ("app", "worker", "helper")),
        *(rf"assets/run-{name}-\w+\.wasm" for name in build.ENGINES),
        *(r"assets/style-\w+\.css", r"assets/favicon-\w+\.svg", r"assets/python-stdlib-\w+\.zip"),
        r"assets/fabella-[\d.]+-0\w+-py3-none-any\.whl",
        r"assets/random-\w+\.gguf",
    ]
    names = set(contents(dist))
    for pattern in patterns:
        (name,) = (name for name in names if re.fullmatch(pattern, name))
        names.remove(name)
    assert not names


def test_names_every_part_by_its_content(dist: Path, random_model: Path) -> None:
    parts = assets(dist)
    model = parts.pop("model")
    assert isinstance(model, dict)
    assert model["name"] == "random.gguf"
    assert model["bytes"] == random_model.stat().st_size
    assert (dist / model["url"]).read_bytes() == random_model.read_bytes()
    assert build.digest(random_model) in model["url"]
    engines = parts.pop("engines")
    assert isinstance(engines, dict)
    assert engines.keys() == build.ENGINES.keys()
    for name, engine in engines.items():
        file = dist / engine["url"]
        assert engine["bytes"] == file.stat().st_size
        assert file.name == f"run-{name}-{build.digest(file)}.wasm"
    bytes_of_python = parts.pop("python_bytes")
    lock = json.loads((build.NODE_MODULES / "pyodide/pyodide-lock.json").read_text())
    assert parts.pop("python_info") == lock["info"]
    assert all((dist / str(url)).exists() for url in parts.values())
    del parts["worker"], parts["helper"]
    assert bytes_of_python == sum(build.size(dist / str(url)) for url in parts.values())


def test_no_file_of_ours_names_another_origin(dist: Path) -> None:
    ours = [path for path in dist.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    ours += [path for path in (dist / "assets").glob("*.js")]
    assert len(ours) >= 5
    for path in ours:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, never fetched
        assert not re.search(r"""https?:|["'(]//""", text), path.name


def test_names_the_licences_of_what_it_contains(dist: Path) -> None:
    text = (dist / "LICENSES.txt").read_text()
    version = json.loads((build.NODE_MODULES / "pyodide/package.json").read_text())["version"]
    assert f"Pyodide {version}" in text
    for licence in (
        "MIT License",
        "Mozilla Public License Version 2.0",
        "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
    ):
        assert licence in text


def test_stdlib_is_bytecode_that_python_takes_as_it_is(dist: Path) -> None:
    (path,) = (dist / "assets").glob("*.zip")
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


def test_the_wheel_holds_the_package_and_the_engine(dist: Path) -> None:
    (wheel,) = (dist / "assets").glob("*.whl")
    sources = {f"fabella/{path.name}" for path in (build.ROOT / "py/fabella").glob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        others = {"fabella/py.typed", "fabella/run.wasm"}
        assert sources | others == {name for name in names if name.startswith("fabella/")}
        (engine,) = (dist / "assets").glob("run-simd-*.wasm")
        assert archive.read("fabella/run.wasm") == engine.read_bytes()
        metadata = archive.read("fabella-0.1.0.dist-info/METADATA").decode()
    assert "License-Expression: MIT" in metadata
    assert re.search(r"Requires-Dist: wasmtime.*; sys_platform != .emscripten.", metadata)


def test_the_wheel_does_not_depend_on_the_environment(
    dist: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    (published,) = (dist / "assets").glob("*.whl")
    assert build.build_wheel().read_bytes() == published.read_bytes()


@pytest.mark.parametrize("source", ["wheel", "repository"])
def test_pip_installs_it(dist: Path, random_model: Path, tmp_path: Path, source: str) -> None:
    what = next((dist / "assets").glob("*.whl")) if source == "wheel" else build.ROOT
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path), str(what)], check=True, timeout=120)
    command = [sys.executable, "-m", "fabella", str(random_model), "-i", "Hello", "-t", "0", "-n", "20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
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
    with pytest.raises(build.BuildError, match="leave --tokenizer out"):
        build.model_as_gguf(random_model, tokenizer, tmp_path)


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
        [sys.executable, build.ROOT / "build.py", "serve", "--model", random_model, "--out", tmp_path / "dist"],
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
        assert server.wait(10) == 0
        assert "Traceback" not in rest
    finally:
        server.kill()


def test_only_files_named_by_their_content_are_kept_for_ever(dist: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    shutil.copytree(dist, page)
    with build.listen(page, 0) as server:
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
        assert cache_control(f"/{pyodide}/pyodide.mjs") == (200, forever)
        assert cache_control("/") == (200, "no-cache")
        assert cache_control("/?/assets/") == (200, "no-cache")
        assert cache_control("/assets/") == (200, "no-cache"), "a listing"
        assert cache_control("/assets/run-0.wasm") == (404, "no-cache")
        (page / "index.html").unlink()  # as while a new page is put in the place of the old one
        assert cache_control("/index.html") == (404, "no-cache")
        assert cache_control(f"/assets/{engine}") == (200, forever)
        server.shutdown()


def test_serves_at_another_address(dist: Path) -> None:
    arguments = build.parser().parse_args(["serve", "--host", "0.0.0.0"])
    with build.listen(dist, 0, arguments.host) as server:
        assert server.server_address[0] == "0.0.0.0"
    assert build.parser().parse_args(["serve"]).host == "127.0.0.1"
    with pytest.raises(build.BuildError, match=r"cannot serve at 192\.0\.2\.1, port 8000: "):
        build.listen(dist, None, "192.0.2.1")  # an address that no machine has


def test_a_port_that_is_taken(dist: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(build.BuildError, match=f"port {port} is taken: choose another with --port"):
            build.listen(dist, port)


def test_without_a_port_it_takes_the_next_free_one(dist: Path) -> None:
    with build.listen(dist, None) as first, build.listen(dist, None) as second:
        assert 8000 <= first.server_port < second.server_port


# ---- What build.py says and does on the way --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "word"), [("", "--model"), ("serve", "--port"), ("setup", "training"), ("test", "pytest")]
)
def test_help(command: str, word: str) -> None:
    printed = run_build(*command.split(), "--help")
    assert printed.startswith("usage: build.py")
    assert word in printed


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
        {"index.html": (build.WEB / "index.html").read_bytes(), "app.js": b""},
        {"index.html": OLD_PAGE, "CNAME": b"example.org"},
    ],
    ids=["another page", "the page's source", "a file beside the page"],
)
def test_what_it_has_not_built_is_not_replaced(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(build, "ensure_python", lambda lock: pytest.fail("the work has begun"))
    with pytest.raises(build.BuildError, match=r"holds other files \(.*\): name a new folder with --out"):
        build.bundle(random_model, None, tmp_path)
    assert contents(tmp_path) == files


def test_an_older_page_is_replaced(tmp_path: Path) -> None:
    for name in ("dist", "new"):
        (tmp_path / name / "assets").mkdir(parents=True)
        (tmp_path / name / "index.html").write_bytes(OLD_PAGE)
    (tmp_path / "dist/assets/old.js").write_text("")
    build.swap(tmp_path / "new", tmp_path / "dist")
    assert contents(tmp_path) == {"dist/index.html": OLD_PAGE}


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

    monkeypatch.setattr(build, "VENV", tmp_path)
    monkeypatch.setattr(build, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(build, "run", run)
    monkeypatch.setattr(sys, "platform", "linux")
    build.ensure_python("requirements-dev.txt")
    torch, everything = (command for command in commands if "pip" in command)
    assert "--extra-index-url https://download.pytorch.org/whl/cpu torch==" in torch
    assert everything.endswith("-r requirements-dev.txt")
    assert "about 200 MB" in capsys.readouterr().out

    link = tmp_path / "fabella.pth"
    assert link.read_text() == f"{build.ROOT / 'py'}\n"
    link.unlink()
    build.ensure_python("requirements-dev.txt")
    assert len([command for command in commands if "pip" in command]) == 2, "nothing is installed again"
    assert link.exists()


def test_an_old_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "run", lambda *command: "v18.20.4\n")
    with pytest.raises(build.BuildError, match=r"Node.js v18.20.4 is too old: install version 20"):
        build.ensure_node_packages()


def test_says_what_to_install_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build.BuildError, match=r"emcc, is missing(.|\n)*emsdk install latest"):
        build.ensure_emcc()
    with pytest.raises(build.BuildError, match=r"clang-19 and wasm-ld-19 are missing(.|\n)*install .* clang-19 lld-19"):
        build.ensure_clang()
    monkeypatch.setattr(build, "NODE_MODULES", Path("/nowhere"))
    with pytest.raises(build.BuildError, match=r"Node.js is missing: install version 20"):
        build.ensure_node_packages()


def test_installs_from_apt_as_root_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(build, "run", lambda *command: commands.append(" ".join(command)))
    assert build.apt_install("Clang", "clang-19", "lld-19")
    assert capsys.readouterr().out == "Installing Clang with apt-get (clang-19 lld-19) ...\n"
    assert commands == ["apt-get update -q", "apt-get install -q -y --no-install-recommends clang-19 lld-19"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not build.apt_install("Emscripten", "emscripten")


def test_makes_again_only_what_has_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    made = []

    def make(target: Path) -> None:
        made.append(target)
        target.write_text("made")

    one = build.cached("thing.txt", "1", make)
    assert one.read_text() == "made"
    assert build.cached("thing.txt", "1", make) == one
    assert build.cached("thing.txt", "2", make) != one
    assert len(made) == 2

    def fail(target: Path) -> None:
        target.write_text("half")
        raise build.BuildError("no")

    with pytest.raises(build.BuildError):
        build.cached("thing.txt", "3", fail)
    assert {path.name for path in tmp_path.iterdir()} == {"thing-2.txt"}, "the older one is gone"


def test_a_command_that_fails_is_shown_with_its_words() -> None:
    with pytest.raises(build.BuildError, match=r"this command failed:\n.*\noh dear"):
        build.run(sys.executable, "-c", "import sys; sys.exit('oh dear')")
    with pytest.raises(build.BuildError, match="no-such-program is not installed"):
        build.run("no-such-program")
