"""Models that are kept on the visitor's machine: how they come there, whatever hosts, disks and tabs do meanwhile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from builder.tools import WEB

from .conftest import Handler, Site, Visit
from .faults import flipped, missing, names
from .gate import begun_with
from .kept import files, forget, read_json, remove, truncate, wait_for_part, write
from .ranges import MIB, RangeHost
from .stories import PROMPT, assert_told, reference

# What the worker says of the model on its way.
PROGRESS = """
window.arrived = [];
window.Worker = class extends Worker {
  constructor(...parameters) {
    super(...parameters);
    this.addEventListener("message", ({ data }) => {
      if (data.type === "progress" && data.part === "model") arrived.push(data);
    });
  }
};
"""


@pytest.fixture(autouse=True)
def progress(visit: Visit) -> None:
    visit.context.add_init_script(PROGRESS)


@pytest.fixture
def site(built: Callable[[Path], Path], shipped_model: Path) -> Iterator[Site]:
    """The page around the shipped model, of four blocks."""
    site = Site(built(shipped_model))
    yield site
    site.close()


@pytest.fixture
def host(site: Site) -> RangeHost:
    """What answers the requests for the model."""
    host = RangeHost()
    site.faults = names(site, "*.gguf", host)
    return host


@pytest.fixture
def id(shipped_model: Path) -> str:
    return hashlib.sha256(shipped_model.read_bytes()).hexdigest()


def fails(visit: Visit, *said: str) -> None:
    """Waits for the page's sentence, which must hold these words."""
    visit.becomes("failed")
    for words in said:
        expect(visit.alert).to_contain_text(words)


def ready(visit: Visit) -> dict[str, Any]:
    """Waits until the model is there; what the worker said then."""
    visit.awake()
    return visit.received("ready")[-1]


def arrived(visit: Visit) -> list[tuple[int, int, int]]:
    """The bytes that had come at each word of the worker's, all of them, and how many of them were there before."""
    said = visit.page.evaluate("arrived")
    return [(step["loaded"], step["total"], step["resumed_from"]) for step in said]


def assert_kept(visit: Visit, site: Site, id: str, model: Path) -> None:
    """The model is kept, whole, and the next visit needs no host for it and tells the right story."""
    assert files(visit).keys() == {f"{id}.gguf", f"{id}.json"}
    site.requests.clear()
    visit.page.reload()
    assert ready(visit)["kept"] is True
    size = model.stat().st_size
    assert arrived(visit)[-1] == (size, size, size)
    assert not [path for path in site.requests if path.endswith(".gguf")]
    visit.tell(PROMPT, temperature=0.0, repetition_penalty=1, length=100)
    assert_told(visit, reference(model, PROMPT, 100, temperature=0.0))


# ---- Kept ------------------------------------------------------------------------------------------------------------


def test_the_second_visit_reads_what_the_first_has_kept(visit: Visit, site: Site, id: str, shipped_model: Path) -> None:
    visit.open(site)
    said = ready(visit)
    size = shipped_model.stat().st_size
    assert (said["kept"], said["why"], said["model"]["id"]) == (True, None, id)
    assert arrived(visit)[-1] == (size, size, 0)
    assert files(visit)[f"{id}.gguf"] == size
    mark = read_json(visit, f"{id}.json")
    assert mark["card"] == said["model"]
    assert (mark["bytes"], mark["pages"], mark["chosen"]) == (size, [site.url], False)
    assert_kept(visit, site, id, shipped_model)
    assert read_json(visit, f"{id}.json") == mark


def flip(visit: Visit, id: str) -> None:
    write(visit, f"{id}.gguf", "\0\1\2\3", at=2 * MIB + 5)


def shorten(visit: Visit, id: str) -> None:
    truncate(visit, f"{id}.gguf", 2 * MIB)


def lengthen(visit: Visit, id: str) -> None:
    write(visit, f"{id}.gguf", "more", at=files(visit)[f"{id}.gguf"])


def empty(visit: Visit, id: str) -> None:
    truncate(visit, f"{id}.gguf", 0)


def evict(visit: Visit, id: str) -> None:
    forget(visit)


def lose_file(visit: Visit, id: str) -> None:
    remove(visit, f"{id}.gguf")


@pytest.mark.parametrize(
    "damage", [flip, shorten, lengthen, empty, evict, lose_file], ids=lambda damage: damage.__name__
)
def test_what_is_damaged_or_gone_is_downloaded_again(
    visit: Visit, site: Site, id: str, shipped_model: Path, damage: Callable[[Visit, str], None]
) -> None:
    visit.open(site)
    damage(visit, id)
    site.requests.clear()
    visit.page.reload()
    assert ready(visit)["kept"] is True
    assert len([path for path in site.requests if path.endswith(".gguf")]) == 1
    assert arrived(visit)[-1][2] == 0, "all of it has come now"
    assert_kept(visit, site, id, shipped_model)


@pytest.mark.parametrize("lost", ["all", "half"])
def test_a_lost_mark_is_made_anew_without_a_download(
    visit: Visit, site: Site, id: str, shipped_model: Path, lost: str
) -> None:
    visit.open(site)
    mark = read_json(visit, f"{id}.json")
    if lost == "all":
        remove(visit, f"{id}.json")
    else:
        truncate(visit, f"{id}.json", 100)
    visit.page.reload()
    assert ready(visit)["kept"] is True
    assert_kept(visit, site, id, shipped_model)
    assert read_json(visit, f"{id}.json") == mark | {"kept_at": read_json(visit, f"{id}.json")["kept_at"]}


def cut(visit: Visit, host: RangeHost, size: int) -> None:
    """Cuts the connection as soon as so many bytes are kept."""
    wait_for_part(visit, size)
    host.cutting.release()


def interrupt(visit: Visit, site: Site, host: RangeHost, blocks: int) -> None:
    """Has a download end after so many blocks."""
    host.cuts = [blocks * MIB + 1000] * 2  # taken up again, it brings nothing
    visit.open(site, ready=False)
    cut(visit, host, blocks * MIB)
    host.cutting.release()
    fails(visit, "stopped arriving halfway", f"The {blocks * MIB / 1e6:.1f} MB that have come are kept")
    assert len(host.asked) == 2
    host.asked.clear()


# ---- Downloads -------------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_where_it_was_cut(
    visit: Visit, site: Site, host: RangeHost, id: str, shipped_model: Path
) -> None:
    host.cuts = [MIB + 1000, 2 * MIB + 1000]
    visit.open(site, ready=False)
    cut(visit, host, MIB)
    cut(visit, host, 2 * MIB)
    visit.awake()
    assert host.asked == [(None, None), (f"bytes={MIB}-", host.etag), (f"bytes={2 * MIB}-", host.etag)]
    assert ready(visit)["kept"] is True
    assert_kept(visit, site, id, shipped_model)


def test_an_interrupted_download_is_gone_on_with_later(
    visit: Visit, site: Site, host: RangeHost, id: str, shipped_model: Path
) -> None:
    interrupt(visit, site, host, blocks=2)
    assert files(visit).keys() == {f"{id}.part", f"{id}.part.json"}
    visit.again_button.click()
    assert ready(visit)["kept"] is True
    assert host.asked == [(f"bytes={2 * MIB}-", host.etag)]
    assert arrived(visit)[-1][2] == 2 * MIB
    assert_kept(visit, site, id, shipped_model)


def test_a_reload_in_the_middle_goes_on_with_what_has_come(
    visit: Visit, site: Site, host: RangeHost, id: str, shipped_model: Path
) -> None:
    host.cuts = [2 * MIB + 1000]
    visit.open(site, ready=False)
    wait_for_part(visit, 2 * MIB)
    host.asked.clear()
    visit.page.reload()
    assert ready(visit)["kept"] is True
    host.cutting.release()
    assert [wanted for wanted, _ in host.asked] == [f"bytes={2 * MIB}-"]
    assert_kept(visit, site, id, shipped_model)


def test_a_part_that_was_damaged_goes_on_from_its_last_good_block(
    visit: Visit, site: Site, host: RangeHost, id: str, shipped_model: Path
) -> None:
    interrupt(visit, site, host, blocks=3)
    write(visit, f"{id}.part", "\0\1\2\3", at=MIB + 5)
    visit.again_button.click()
    assert ready(visit)["kept"] is True
    assert [wanted for wanted, _ in host.asked] == [f"bytes={MIB}-"]
    assert_kept(visit, site, id, shipped_model)


@pytest.mark.parametrize(
    "changes",
    [
        {"ignores_ranges": True},
        {"etag": '"second"'},
        {"etag": '"second"', "ignores_conditions": True},
        {"shift": -MIB},
        {"growth": 1000},
        {"unsatisfiable": True},
    ],
    ids=str,
)
def test_a_host_that_does_not_go_on_with_the_same_file_is_asked_for_all_of_it(
    visit: Visit, site: Site, host: RangeHost, id: str, shipped_model: Path, changes: dict[str, Any]
) -> None:
    interrupt(visit, site, host, blocks=2)
    for name, value in changes.items():
        setattr(host, name, value)
    visit.again_button.click()
    assert ready(visit)["kept"] is True
    assert host.asked[0][0] == f"bytes={2 * MIB}-"
    assert arrived(visit)[-1][2] == 0
    assert_kept(visit, site, id, shipped_model)


def test_nothing_is_kept_of_another_file(visit: Visit, site: Site) -> None:
    site.faults = names(site, "*.gguf", flipped)
    visit.open(site, ready=False)
    fails(visit, "some of its bytes are others")
    assert files(visit) == {}
    expect(visit.reload_button).to_be_visible()


def test_a_download_that_brings_nothing_new_is_not_tried_for_ever(visit: Visit, site: Site, host: RangeHost) -> None:
    host.cuts, host.ignores_ranges = [2 * MIB + 1000] * 3, True
    visit.open(site, ready=False)
    wait_for_part(visit, 2 * MIB)
    host.cutting.release(3)
    fails(visit, "stopped arriving halfway")
    assert len(host.asked) == 2


# ---- Two tabs --------------------------------------------------------------------------------------------------------


def another_tab(visit: Visit) -> Visit:
    """Another tab of the same visitor's, with a record of its own."""
    return Visit(visit.context)


def test_two_tabs_share_a_download(visit: Visit, site: Site, host: RangeHost, id: str, shipped_model: Path) -> None:
    host.cuts = [2 * MIB + 1000]
    visit.open(site, ready=False)
    wait_for_part(visit, 2 * MIB)
    second = another_tab(visit)
    second.open(site, ready=False)
    second.page.wait_for_function(f"() => arrived.at(-1)?.loaded > {2 * MIB}")
    assert len(host.asked) == 1, "it hears of it from the first"
    host.cutting.release()  # which goes on
    assert ready(visit)["kept"] is True
    assert ready(second)["kept"] is True
    assert len(host.asked) == 2
    assert_kept(second, site, id, shipped_model)


def test_a_tab_takes_over_from_one_that_was_closed(
    visit: Visit, site: Site, host: RangeHost, id: str, shipped_model: Path
) -> None:
    host.cuts = [2 * MIB + 1000]
    first = another_tab(visit)
    first.open(site, ready=False)
    wait_for_part(first, 2 * MIB)
    visit.open(site, ready=False)
    visit.page.wait_for_function(f"() => arrived.at(-1)?.loaded > {2 * MIB}")
    first.page.close()
    assert ready(visit)["kept"] is True
    host.cutting.release()
    assert [wanted for wanted, _ in host.asked] == [None, f"bytes={2 * MIB}-"]
    assert_kept(visit, site, id, shipped_model)


# ---- Where nothing can be kept ---------------------------------------------------------------------------------------


def assert_works_unkept(visit: Visit, model: Path, why: str) -> None:
    said = ready(visit)
    assert said["kept"] is False
    assert why in said["why"]
    visit.tell(PROMPT, temperature=0.0, repetition_penalty=1, length=60)
    assert_told(visit, reference(model, PROMPT, 60, temperature=0.0))


@pytest.mark.parametrize(
    "without",
    [
        "delete StorageManager.prototype.getDirectory;",
        "StorageManager.prototype.getDirectory = async () => { throw new DOMException('private', 'SecurityError'); };",
        "delete Navigator.prototype.locks; delete WorkerNavigator.prototype.locks;",
        "FileSystemFileHandle.prototype.createSyncAccessHandle = async () => { throw new DOMException(); };",
    ],
    ids=["no folder", "a private window", "no locks", "no files"],
)
def test_without_a_place_to_keep_models_the_page_works(
    visit: Visit, site: Site, shipped_model: Path, without: str
) -> None:
    site.faults = names(site, "worker-*.js", begun_with(f"globalThis.Navigator ??= WorkerNavigator; {without}"))
    visit.open(site)
    assert_works_unkept(visit, shipped_model, "The model is not kept on this machine")
    assert not [name for name in files(visit) if name.endswith((".gguf", ".json"))]


def test_a_model_larger_than_the_quota_is_loaded_all_the_same(visit: Visit, site: Site, shipped_model: Path) -> None:
    devtools = visit.context.new_cdp_session(visit.page)
    devtools.send("Storage.overrideQuotaForOrigin", {"origin": site.origin, "quotaSize": 3_000_000})
    visit.open(site)
    assert_works_unkept(visit, shipped_model, "its 3.9 MB are more than the browser has room for")
    assert files(visit) == {}


def test_a_quota_that_is_met_on_the_way_costs_nothing_that_has_come(
    visit: Visit, site: Site, host: RangeHost, shipped_model: Path
) -> None:
    lying = "StorageManager.prototype.estimate = async () => ({ quota: 1e12, usage: 0 });"
    site.faults |= names(site, "worker-*.js", begun_with(lying))
    devtools = visit.context.new_cdp_session(visit.page)
    devtools.send("Storage.overrideQuotaForOrigin", {"origin": site.origin, "quotaSize": 3_000_000})
    visit.open(site)
    assert_works_unkept(visit, shipped_model, "its 3.9 MB are more than the browser has room for")
    assert [wanted for wanted, _ in host.asked] == [None, f"bytes={2 * MIB}-"]
    assert files(visit) == {}


def test_memory_that_files_are_not_read_into_is_filled_by_copies(visit: Visit, site: Site, shipped_model: Path) -> None:
    """As where the engine's memory is shared by threads, and the browser minds."""
    refusing = """
    const { read } = FileSystemSyncAccessHandle.prototype;
    FileSystemSyncAccessHandle.prototype.read = function (target, options) {
      if (target.buffer instanceof SharedArrayBuffer) throw new TypeError("shared");
      return read.call(this, target, options);
    };
    """
    site.headers |= {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
    site.faults = names(site, "worker-*.js", begun_with(refusing))
    visit.open(site)
    assert ready(visit)["kept"] is True
    visit.tell(PROMPT, temperature=0.0, repetition_penalty=1, length=60)
    assert_told(visit, reference(shipped_model, PROMPT, 60, temperature=0.0))


# ---- Versions of a page ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [False, True])
def test_a_new_model_of_the_page_takes_the_place_of_the_old(
    visit: Visit, site: Site, id: str, built: Callable[[Path], Path], random_model: Path, chosen: bool
) -> None:
    visit.open(site)
    if chosen:
        mark = read_json(visit, f"{id}.json") | {"chosen": True}
        truncate(visit, f"{id}.json", 0)
        write(visit, f"{id}.json", json.dumps(mark))
    site.folder = built(random_model)
    visit.page.reload()
    new = ready(visit)["model"]["id"]
    assert new != id
    ids = {name.split(".")[0] for name in files(visit)}
    assert ids == ({id, new} if chosen else {new})


def test_pages_of_one_host_leave_each_other_their_models(
    visit: Visit, site: Site, id: str, built: Callable[[Path], Path], random_model: Path
) -> None:
    visit.open(site)
    neighbour = f"{site.url}index.html"  # another page, if with the same files
    visit.page.goto(neighbour)
    ready(visit)
    assert sorted(read_json(visit, f"{id}.json")["pages"]) == [site.url, neighbour]
    site.folder = built(random_model)
    visit.page.reload()
    new = ready(visit)["model"]["id"]
    assert {name.split(".")[0] for name in files(visit)} == {id, new}
    assert read_json(visit, f"{id}.json")["pages"] == [site.url]
    visit.open(site)
    assert {name.split(".")[0] for name in files(visit)} == {new}


# ---- Other sources ---------------------------------------------------------------------------------------------------

# Starts the page's own worker, as bridge.js does, and has it load a model; what it answers is in `answer`.
LOAD = """async ([source, path, preparation]) => {
  const index = new DOMParser().parseFromString(await (await fetch("index.html")).text(), "text/html");
  const assets = JSON.parse(index.querySelector("#assets").textContent);
  const bytes = async (url) => (await fetch(url)).arrayBuffer();
  const file = path && new File([await bytes(path)], "mine.gguf", { lastModified: 1 });
  const module = await WebAssembly.compile(await bytes(assets.python.wasm.url));
  const compressed = (await fetch(assets.python.snapshot.url)).body;
  const snapshot = await new Response(compressed.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const parts = [preparation, await bytes(assets.python.script.url), "\\n", await bytes(assets.worker.url)];
  const script = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
  const worker = new Worker(script, { type: "module" });
  let said = {};
  window.answer = null;
  worker.onerror = ({ message }) => (window.answer = { message });
  worker.onmessage = ({ data }) => {
    if (data.type === "ready") said = data;
    if (data.type !== "error" && data.type !== "engine") return;
    window.answer = { ...said, ...data };
    worker.terminate();
  };
  const message = { type: "load", id: 1, assets, base: document.baseURI, python: { module, snapshot } };
  worker.postMessage({ ...message, source: file ? { ...source, file } : source });
}"""


class Blank:
    """A page without a policy of its own, which loads models with the worker of the other."""

    def __init__(self, visit: Visit, site: Site) -> None:
        def empty_page(handler: Handler, file: Path) -> None:
            handler.answer(b"<!doctype html><link rel='icon' href='data:,'>", type="text/html")

        site.faults["blank.html"] = empty_page
        self.visit = visit
        visit.page.goto(f"{site.url}blank.html")

    def begin(self, source: dict[str, Any], path: str | None = None, preparation: str = "") -> None:
        """Has the worker load a model; a file's bytes are those of a path of the site."""
        self.visit.page.evaluate(LOAD, [source, path, preparation])

    def answer(self) -> dict[str, Any]:
        """What it says when it is done."""
        answer: dict[str, Any] = self.visit.page.wait_for_function("() => window.answer").json_value()
        self.visit.complaints.clear()
        return answer

    def __call__(self, *arguments: Any) -> dict[str, Any]:
        self.begin(*arguments)
        return self.answer()


@pytest.fixture
def blank(site: Site, visit: Visit) -> Blank:
    return Blank(visit, site)


@pytest.fixture
def url(site: Site) -> str:
    (name,) = names(site, "*.gguf", missing)
    return f"assets/{name}"


def test_a_file_of_the_visitors_is_kept_under_its_hash(
    visit: Visit, blank: Blank, url: str, id: str, shipped_model: Path
) -> None:
    answer = blank({"kind": "file"}, url)
    assert (answer["kept"], answer["model"]["id"]) == (True, id)
    assert files(visit).keys() == {f"{id}.gguf", f"{id}.json"}
    mark = read_json(visit, f"{id}.json")
    assert (mark["name"], mark["url"], mark["chosen"]) == ("mine.gguf", None, True)

    again = blank({"kind": "kept", "id": id})
    assert (again["kept"], again["model"]) == (True, answer["model"])
    remove(visit, f"{id}.json")
    assert blank({"kind": "kept", "id": id})["kept"] is True, "its name says what it must be"

    flip(visit, id)
    said = blank({"kind": "kept", "id": id})["message"]
    assert "is damaged, and so it was removed" in said
    assert files(visit) == {}
    assert "is no longer on this machine" in blank({"kind": "kept", "id": id})["message"]


def test_a_file_of_the_visitors_is_read_where_it_is_if_it_cannot_be_kept(blank: Blank, url: str) -> None:
    without = "delete StorageManager.prototype.getDirectory;"
    answer = blank({"kind": "file"}, url, without)
    assert answer["kept"] is False
    assert answer["model"]["layers"] > 0


def test_a_file_system_that_never_answers_is_done_without(blank: Blank, url: str) -> None:
    dead = "StorageManager.prototype.getDirectory = () => new Promise(() => {});"
    fast = "{ const now = performance.now.bind(performance); performance.now = () => 100 * now(); }"
    answer = blank({"kind": "file"}, url, dead + fast)
    assert answer["kept"] is False
    assert answer["model"]["layers"] > 0


def test_a_file_that_is_no_model_is_not_kept(visit: Visit, blank: Blank) -> None:
    assert "The model could not be loaded" in blank({"kind": "file"}, "index.html")["message"]
    assert files(visit) == {}


def test_a_model_from_an_address_is_kept_under_its_hash(
    visit: Visit, site: Site, blank: Blank, url: str, id: str, shipped_model: Path
) -> None:
    host = RangeHost(cuts=[2 * MIB + 1000] * 2)
    site.faults |= names(site, "*.gguf", host)
    blank.begin({"kind": "url", "url": url})
    cut(visit, host, 2 * MIB)
    host.cutting.release()
    assert "are kept" in blank.answer()["message"]
    answer = blank({"kind": "url", "url": url})
    assert (answer["kept"], answer["model"]["id"]) == (True, id)
    assert [wanted for wanted, _ in host.asked][2:] == [f"bytes={2 * MIB}-"]
    assert files(visit).keys() == {f"{id}.gguf", f"{id}.json"}
    host.asked.clear()
    assert blank({"kind": "url", "url": url})["kept"] is True
    assert host.asked == []


@pytest.mark.parametrize("allowed", [True, False])
def test_another_host_has_to_allow_it(visit: Visit, site: Site, blank: Blank, url: str, id: str, allowed: bool) -> None:
    other = Site(site.folder)
    host = RangeHost(cuts=[2 * MIB + 1000] if allowed else [], cross_origin=allowed)
    other.faults = names(site, "*.gguf", host)
    try:
        blank.begin({"kind": "url", "url": f"{other.url}{url}"})
        if allowed:
            cut(visit, host, 2 * MIB)
        answer = blank.answer()
        if allowed:
            assert host.asked == [(None, None), (f"bytes={2 * MIB}-", None)], "no question that would need leave"
            assert (answer["kept"], answer["model"]["id"]) == (True, id)
        else:
            assert "does not allow other pages to read its files" in answer["message"]
            assert files(visit) == {}
    finally:
        other.close()
        visit.requests.clear()  # it has left the origin, as it was asked to


# ---- The page's view ---------------------------------------------------------------------------------------------

STORE = """async ([name, ...given]) => {
  const store = await import(new URL("store.js", document.baseURI).href);
  return store[name](...given);
}"""


@pytest.fixture
def store(site: Site, visit: Visit) -> Callable[..., Any]:
    """Calls a function of web/store.js in the page."""
    script = (WEB / "store.js").read_bytes()
    site.faults["/store.js"] = lambda handler, file: handler.answer(script, type="text/javascript")
    return lambda name, *given: visit.page.evaluate(STORE, [name, *given])


def test_the_page_lists_and_removes_what_is_kept(
    visit: Visit, site: Site, store: Callable[..., Any], id: str, shipped_model: Path
) -> None:
    visit.open(site)
    said = ready(visit)
    files(visit)  # all is at rest
    assert store("available") is True
    (kept,) = store("list")
    size = shipped_model.stat().st_size
    assert kept == {
        "id": id,
        "name": "Fabella Stories",
        "bytes": size,
        "card": said["model"],
        "kept_at": kept["kept_at"],
    }
    assert store("usage")["used"] > size
    assert store("usage")["quota"] > store("usage")["used"]

    remove(visit, f"{id}.json")
    (kept,) = store("list")
    assert (kept["id"], kept["bytes"], kept["card"]) == (id, size, None), "it can be removed all the same"
    store("remove", id)
    assert store("list") == []
    assert files(visit) == {}
    store("remove", id)
    visit.tell(PROMPT, length=30)  # the model that runs does not mind


def test_the_page_has_nothing_to_list_where_nothing_can_be_kept(
    visit: Visit, site: Site, store: Callable[..., Any], id: str
) -> None:
    visit.page.add_init_script("delete Navigator.prototype.storage")
    visit.open(site)
    assert store("available") is False
    assert store("list") == []
    assert store("usage") == {"used": 0, "quota": 0, "persisted": False}
    assert store("persist") is False
    store("remove", id)
