"""The same bits in Chromium, Firefox and WebKit as under wasmtime: the page's stories, and every logit behind them."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import builder.assets
import builder.engines
import builder.install
import builder.page
import builder.serve
import builder.tools
from builder.tools import ROOT
from fabella.formats import STORED
from fabella.generate import generate
from fabella.hosts import WasmtimeHost
from fabella.modelfile import Config
from fabella.sampler import Settings

from . import families, probe
from .browsers import Driven, Missing, chromium, firefox, webkit
from .conftest import Site
from .gate import REST
from .random_models import load, write_random_model
from .test_builds import write_adapted

PROMPT = "Lily and her mom went to"
LENGTH = 300

# Query heads that share keys, rows that do not fill the last block of SIMD lanes; each type's groups divide the rows.
SHAPE = Config(dim=96, hidden_dim=160, n_layers=3, n_heads=6, n_kv_heads=2, vocab_size=1003, seq_len=100)
# A head's channels and the rows are no multiples of anything: for types without groups only.
ODD_SHAPE = Config(dim=66, hidden_dim=31, n_layers=2, n_heads=3, n_kv_heads=1, vocab_size=301, seq_len=100, tied=False)
# Groups of 256 divide the rows.
LARGE_SHAPE = Config(dim=256, hidden_dim=512, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=303, seq_len=100)


@pytest.fixture(params=["Chromium", "Firefox", "WebKit"])
def driven(request: pytest.FixtureRequest) -> Iterator[Driven]:
    """Each of the browsers, freshly started: WebKit once hung on its way from one isolated host to another."""
    start = {
        "Chromium": lambda: chromium(request.getfixturevalue("browser")),
        "Firefox": firefox,
        "WebKit": webkit,
    }[request.param]
    try:
        with start() as driven:
            yield driven
    except Missing as missing:
        pytest.skip(str(missing))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which build.py serves a folder, with the headers that allow threads."""
    with builder.serve.listen(folder, 0) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def plainly_served(folder: Path) -> Iterator[str]:
    """The address at which a host without any special header serves a folder."""
    site = Site(folder)
    yield site.url
    site.close()


def test_browsers_that_are_missing_are_named_and_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_such_package(what: str, *packages: str) -> bool:
        raise builder.tools.BuildError(f"E: Unable to locate package {packages[0]}")

    monkeypatch.setattr(builder.install, "find_browser", lambda: "/usr/bin/chromium")
    monkeypatch.setattr(builder.install, "find_firefox", lambda: None)
    monkeypatch.setattr(builder.install, "find_webkit", lambda: None)
    monkeypatch.setattr(builder.install, "apt_install", lambda what, *packages: False)
    builder.install.ensure_browsers()
    monkeypatch.setattr(builder.install, "apt_install", no_such_package)
    builder.install.ensure_browsers()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Firefox", "WebKit"] * 2
    assert all("its tests will be skipped" in line for line in lines)
    assert "apt-get install --no-install-recommends webkit2gtk-driver xvfb" in lines[1]
    assert "Unable to locate package firefox-esr" in lines[2]

    with pytest.raises(Missing, match="apt-get install --no-install-recommends firefox-esr"), firefox():
        pass
    with pytest.raises(Missing, match="webkit2gtk-driver xvfb"), webkit():
        pass


# ---- The page --------------------------------------------------------------------------------------------------------

# What became of the page's last task: null while it is busy.
OUTCOME = """
const { state } = document.body.dataset;
if (state === "failed") throw document.querySelector("#problem").textContent;
return state === "ready" ? { story: document.querySelector("#story").textContent } : null;
"""
TELL = """
document.querySelector("input[name=mode][value=story]").click(); // of a model that talks as well
for (const [id, value] of Object.entries(given[0])) {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new InputEvent("input", { bubbles: true }));
}
document.querySelector("#tell").click();
document.querySelector("input[name=pace][value='at once']").click(); // what is told need not be read
"""


def controls(settings: Settings, prompt: str, length: int) -> dict[str, Any]:
    """What the page's controls are set to, by their ids."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
    return {"prompt": prompt, "length": length} | {name: getattr(settings, name) for name in names}


def told(driven: Driven) -> str:
    """The story on the page, once a story can be told or has been."""
    story: str = driven.wait(OUTCOME)["story"]
    return story


def test_the_page_tells_the_same_stories_as_under_wasmtime(
    driven: Driven, built: Callable[[Path], Path], shipped_model: Path, screenshots: Path
) -> None:
    engine, model = load(shipped_model)
    with served(built(shipped_model)) as url:
        driven.resize(1200, 900)
        driven.open(url)
        assert told(driven) == ""
        for settings in (Settings(temperature=0.0, seed=1), Settings(temperature=0.8, top_p=0.9, seed=22)):
            expected = "".join(step.text for step in generate(engine, model.tokenizer, PROMPT, settings, LENGTH))
            driven.run(TELL, controls(settings, PROMPT, LENGTH))
            assert told(driven) == expected
            assert len(expected) > 600
        for width, height in ((1200, 900), (375, 812)):
            driven.resize(width, height)
            driven.wait("return innerWidth === given[0]", width)
            (screenshots / f"{driven.name}-{width}.png").write_bytes(driven.picture())
            assert driven.run("const page = document.documentElement; return page.scrollWidth <= page.clientWidth")


# ---- The logits ------------------------------------------------------------------------------------------------------

# At the end of fabella/page.py in the laboratory: the worker’s Python answers questions about models, in the engine
# that the worker has started. By the only clock that is asked, as many threads as can be are the fastest.
LABORATORY = """

import itertools

import js
from pyodide.ffi import create_proxy, to_js

ticks = itertools.count()


class Page(Page):
    def __init__(self, *given):
        super().__init__(*given)
        js.addEventListener("message", create_proxy(self.answer))

    def forward_time(self, milliseconds):
        return 1 / 2 ** next(ticks)

    async def answer(self, event):
        if event.data.type == "probe":
            file = await (await js.fetch(event.data.model)).bytes()
            host, file = self._session.model.host, file.to_bytes()
            hashes = [sampler_hash(host, file, event.data.sets)] if event.data.sets else logit_hashes(host, file)
            js.postMessage(js.JSON.parse(json.dumps({"type": "hashes", "hashes": hashes})))
"""
# At the beginning of the worker: what it would tell the console alone, the test hears, and it does not choose its
# threads before all helpers are there.
PRELUDE = f"""{{
  console.error = (error) => postMessage({{ type: "error", message: `${{error}}\\n${{error.stack}}` }});
  let missing = HELPERS;
  globalThis.Worker = class extends Worker {{
    constructor(...parameters) {{
      super(...parameters);
      this.addEventListener("message", () => missing--, {{ once: true }});
    }}
  }};
  const {{ setTimeout }} = globalThis;
  globalThis.setTimeout = (callback, milliseconds, ...rest) => {{
    const whenAllAreThere = () => (missing > 0 ? setTimeout(whenAllAreThere, 20) : callback());
    return setTimeout(milliseconds === {REST} ? whenAllAreThere : callback, milliseconds, ...rest);
  }};
}}
"""
VALID = "return WebAssembly.validate(await (await fetch(given[0])).arrayBuffer());"
# WebKitGTK 2.50 says that a page is isolated, and yet hands shared memory to no worker.
SHARES = """
const worker = new Worker(URL.createObjectURL(new Blob([""])));
try {
  worker.postMessage(new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true }));
  return true;
} catch (error) {
  if (error.name === "DataCloneError") return false;
  throw error;
} finally {
  worker.terminate();
}
"""
# Starts the page's own worker, as bridge.js does, and asks it for the hashes of each model.
PROBE = """
const [assets, prelude, models, sets] = given;
const text = async ({ url }) => (await fetch(url)).text();
const scripts = [prelude, await text(assets.python.script), await text(assets.worker)];
const type = "text/javascript";
const worker = new Worker(URL.createObjectURL(new Blob(scripts, { type })), { type: "module" });
const ask = (message, type) => new Promise((resolve, reject) => {
  worker.onerror = ({ message }) => reject(message || "the worker could not be started");
  worker.onmessage = ({ data }) => {
    if (data.type === "error") reject(data.message);
    if (data.type === type) resolve(data);
  };
  worker.postMessage(message);
});
try {
  const module = await WebAssembly.compileStreaming(fetch(assets.python.wasm.url));
  const compressed = (await fetch(assets.python.snapshot.url)).body;
  const snapshot = await new Response(compressed.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const source = { kind: "offer", part: assets.model };
  const { threads } = await ask(
    { type: "load", assets, base: document.baseURI, source, python: { module, snapshot } }, "engine");
  const hashes = {};
  for (const model of models) {
    const url = new URL(`models/${model}`, document.baseURI).href;
    ({ hashes: hashes[model] } = await ask({ type: "probe", id: 0, model: url, sets }, "hashes"));
  }
  return { threads, hashes };
} finally {
  worker.terminate();
}
"""


@pytest.fixture(scope="module")
def laboratory(built: Callable[[Path], Path], shipped_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built page with a Python that answers, and in models/ the shipped model and random ones of each type."""
    folder = tmp_path_factory.mktemp("laboratory") / "page"
    shutil.copytree(built(shipped_model), folder)
    asked = Path(probe.__file__).read_text(encoding="utf-8").replace("from __future__ import annotations", "")
    page = (ROOT / "py/fabella/page.py").read_text(encoding="utf-8")
    program = tmp_path_factory.mktemp("program") / "program.zip"
    with zipfile.ZipFile(builder.python.build_program()) as original:
        modules = {name: original.read(name) for name in original.namelist() if name != "fabella/page.pyc"}
    with zipfile.ZipFile(program, "w") as archive:
        for name, data in (modules | {"fabella/page.py": f"{page}{asked}{LABORATORY}".encode()}).items():
            archive.writestr(name, data)
    snapshot = folder / published(folder)["python"]["snapshot"]["url"]
    builder.python.take_snapshot(builder.python.build_stdlib(), program, snapshot)
    (folder / "blank.html").write_text("<!doctype html><link rel='icon' href='data:,'>", encoding="utf-8")
    models = folder / "models"
    models.mkdir()
    shutil.copyfile(shipped_model, models / "shipped.gguf")
    for type in (*STORED, "mixed"):
        write_random_model(models / f"{type}.gguf", SHAPE, type=type)
    write_random_model(models / "odd.gguf", ODD_SHAPE)
    write_random_model(models / "blocks.gguf", LARGE_SHAPE, type="blocks")
    write_adapted(models / "adapted.gguf", "adapted", shipped_model)
    (models / "adapter").unlink()
    for name in ("gemma3", "llama yarn"):
        families.write(families.make(name), models / f"{name}.gguf")
    return folder


@pytest.fixture(scope="module")
def expected(laboratory: Path) -> dict[str, list[str]]:
    """The hashes under wasmtime, by the models' names."""
    models = sorted((laboratory / "models").iterdir())
    return {model.name: probe.logit_hashes(WasmtimeHost(), model.read_bytes()) for model in models}


def published(folder: Path) -> dict[str, Any]:
    """What a built page loads."""
    found = re.search(f"{builder.page.ASSETS_BLOCK}(.*?)</script>", (folder / "index.html").read_text(encoding="utf-8"))
    assert found
    assets: dict[str, Any] = json.loads(found[1])
    return assets


def test_the_models_say_something_new_with_every_token(expected: dict[str, list[str]]) -> None:
    """Or else their hashes would prove little."""
    for hashes in expected.values():
        assert len(set(hashes)) == len(hashes) - 1
        assert hashes[-1] == hashes[-2], "all at once as one by one"


@pytest.mark.parametrize("engine", builder.engines.ENGINES)
def test_logits_are_the_same_to_the_bit_as_under_wasmtime(
    driven: Driven, engine: str, laboratory: Path, expected: dict[str, list[str]]
) -> None:
    assets = published(laboratory)
    simd = engine.removeprefix("threads-")
    threaded = engine != simd
    with served(laboratory) if threaded else plainly_served(laboratory) as url:
        driven.open(f"{url}blank.html")
        isolated, cores = driven.run("return [crossOriginIsolated, navigator.hardwareConcurrency]")
        assert isolated == threaded
        if threaded and cores == 1:
            pytest.skip(f"{driven.name} says that this machine has one core: there are no threads to try")
        relaxed = driven.run(VALID, assets["engines"]["relaxed"]["url"])
        if simd == "relaxed" and not relaxed:
            pytest.skip(f"{driven.name} {driven.version} has no relaxed SIMD")
        for choice in ("simd", "relaxed"):  # whatever the worker picks, it gets what the test is about
            picked = f"threads-{choice}" if threaded else choice
            assets["engines"][picked] = assets["engines"][engine]
        threads = min(cores, 8) if threaded and driven.run(SHARES) else 1
        answer = driven.run(PROBE, assets, PRELUDE.replace("HELPERS", str(threads - 1)), list(expected), 0)
    assert answer["threads"] == threads
    assert answer["hashes"] == expected


SETS = 25_000


@pytest.mark.parametrize("driven", ["Chromium"], indirect=True)  # Python is the same Pyodide in all
def test_the_sampler_decides_the_same_to_the_bit_as_in_cpython(driven: Driven, laboratory: Path) -> None:
    """Every probability that decides comes from C; Python only adds, compares and divides."""
    model = write_random_model(laboratory / "small.gguf", replace(SHAPE, vocab_size=64))
    with plainly_served(laboratory) as url:
        driven.open(f"{url}blank.html")
        answer = driven.run(PROBE, published(laboratory), PRELUDE.replace("HELPERS", "0"), ["../small.gguf"], SETS)
    assert list(answer["hashes"].values()) == [[probe.sampler_hash(WasmtimeHost(), model.read_bytes(), SETS)]]
