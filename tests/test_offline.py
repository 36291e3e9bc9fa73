"""The page without a network: what is kept on the visitor's machine, how a newer page takes its place, how it goes."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urljoin

import pytest
from playwright.sync_api import Browser, Page, expect

from builder.page import bundle
from builder.serve import ISOLATION
from builder.tools import WEB

from .browsers import Driven, Missing, firefox, wait_for, webkit
from .conftest import RANDOM_CONFIG, Fault, Handler, Site, Visit
from .faults import cut_off, flipped, half, hang_up, missing, overloaded, web_page
from .random_models import write_random_model
from .stories import PROMPT, assert_told, reference

# Private windows, which the tests' are, cannot install any page.
IN_PRIVATE = [{"errorId": "in-incognito", "errorArguments": []}]

# The mean difference of two PNGs of one size, given in base64.
DIFFERENCE = """async (pictures) => {
  const [one, other] = await Promise.all(pictures.map(async (png) => {
    const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${png}`)).blob());
    const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.width, image.height).data;
  }));
  if (one.length !== other.length) return 256;
  return one.reduce((sum, level, index) => sum + Math.abs(level - other[index]), 0) / one.length;
}"""

KEPT = "It is kept on this machine now, and opens without a network, too."


@pytest.fixture(scope="module")
def newer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other weights, of the same shape."""
    return write_random_model(tmp_path_factory.mktemp("newer") / "newer.gguf", RANDOM_CONFIG, type="Q8_0", seed=1)


@pytest.fixture(scope="module")
def removed(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Path:
    """The page, built to do without a service worker."""
    folder = tmp_path_factory.mktemp("removed") / "dist"
    bundle(random_model, None, folder, offline=False)
    return folder


@pytest.fixture
def returning(browser: Browser) -> Iterator[Visit]:
    """A visitor whose browser runs service workers."""
    context = browser.new_context(reduced_motion="reduce")
    yield Visit(context)
    context.close()


def kept(visit: Visit) -> Visit:
    """Waits until the page says that it is kept."""
    expect(visit.page.get_by_text(KEPT)).to_be_visible()
    visit.page.wait_for_function("() => navigator.serviceWorker.controller?.state === 'activated'")
    return visit


def off(site: Site) -> None:
    """There is no network any more."""
    site.faults[""] = hang_up


def another_tab(visit: Visit) -> Visit:
    """A second page of the same visitor."""
    return Visit(visit.context)


def caches(page: Page) -> dict[str, list[str]]:
    """What is kept at the page's origin: by the name of the cache, the URLs."""
    script = """async () => {
      const all = {};
      for (const name of await caches.keys()) {
        all[name] = (await (await caches.open(name)).keys()).map(({ url }) => url);
      }
      return all;
    }"""
    found: dict[str, list[str]] = page.evaluate(script)
    return found


def version(folder: Path) -> str:
    """The version of a built page."""
    (found,) = re.findall(r'<meta name="version" content="(\w+)" />', (folder / "index.html").read_text("utf-8"))
    return str(found)


def cache_of(site: Site, folder: Path | None = None) -> str:
    """The name of the cache of a site's page."""
    return f"fabella {site.url} {version(folder or site.folder)}"


def model_name(page: Page) -> str:
    """What the page says of the model."""
    return page.locator("#model div", has_text="Name").locator("dd").text_content() or ""


def until(page: Page, promise: str) -> None:
    """Waits until a promise that the page makes, again and again, is one of something true."""
    page.evaluate(f"async () => {{ while (!(await {promise})) await new Promise((next) => setTimeout(next, 20)); }}")


def newest_worker(page: Page) -> str:
    """Asks the host for a newer worker; what becomes of it: "installed", or "redundant" if it cannot keep its files."""
    script = """async () => {
      const registration = await navigator.serviceWorker.getRegistration();
      await registration.update();
      const worker = registration.installing ?? registration.waiting;
      while (worker?.state === "installing") {
        await new Promise((resolve) => worker.addEventListener("statechange", resolve, { once: true }));
      }
      return worker?.state ?? "redundant";
    }"""
    return str(page.evaluate(script))


def reload_until(visit: Visit, name: str) -> None:
    """Until the page is the one around this model: a network that takes its time is taken for none."""
    while model_name(visit.page) != name:
        visit.page.reload()
        visit.awake()


# ---- Without a network -----------------------------------------------------------------------------------------------


def test_after_one_visit_the_page_tells_stories_without_a_network(
    returning: Visit, site: Site, random_model: Path
) -> None:
    kept(returning.open(site))
    off(site)
    returning.context.set_offline(True)
    returning.page.reload()
    returning.awake().tell(PROMPT, temperature=0, length=80)
    assert_told(returning, reference(random_model, PROMPT, 80, temperature=0.0))
    returning.page.goto(site.url + "index.html?from=a-friend#p=Hello")
    returning.awake()
    expect(returning.prompt).to_have_value("Hello")
    returning.page.get_by_role("link", name="all licences").click()
    expect(returning.page.get_by_text("Mozilla Public License Version 2.0").first).to_be_visible()
    assert returning.violations() == []


def test_the_first_page_goes_on_without_a_network(returning: Visit, site: Site) -> None:
    """It does not have to be loaded again before it is kept."""
    kept(returning.open(site))
    off(site)
    assert returning.tell(PROMPT, length=40).startswith(PROMPT)
    for name in json.loads((site.folder / "sw.js").read_text("utf-8").partition("= ")[2].partition(";\n")[0])["files"]:
        assert returning.page.evaluate("async (name) => (await fetch(name)).ok", name), name


def test_a_host_in_trouble_is_no_host(returning: Visit, site: Site) -> None:
    kept(returning.open(site))
    site.faults[""] = overloaded
    returning.page.reload()
    returning.awake()


def test_a_page_that_is_gone_is_gone(returning: Visit, site: Site) -> None:
    kept(returning.open(site))
    site.faults[""] = missing

    def answer() -> int:
        response = returning.page.reload()
        assert response
        return response.status

    # (A network that takes its time is taken for none: the page is asked for again.)
    wait_for(lambda: answer() == 404, "the host's own answer")


def test_what_is_not_the_pages_is_the_networks(returning: Visit, site: Site) -> None:
    kept(returning.open(site))
    off(site)
    for name in ("assets/photo.jpg", "letter.txt", "constructor", "assets/", "index.html/", "x/index.html"):
        outcome = returning.page.evaluate("(name) => fetch(name).then(() => 'came', () => 'did not come')", name)
        assert outcome == "did not come", name
    assert returning.page.evaluate("fetch('.', { method: 'POST', body: 'Hello' }).then(({ ok }) => ok)")
    assert site.reports == [b"Hello"]


OPENED = """
const { state } = document.body.dataset;
return ["ready", "failed"].includes(state) && [state, crossOriginIsolated];
"""
IS_KEPT = """
return !document.querySelector("#offline").hidden && navigator.serviceWorker.controller?.state === "activated";
"""


@pytest.mark.parametrize("start", [firefox, webkit], ids=lambda start: start.__name__)
def test_other_browsers_keep_it_as_well(site: Site, start: Callable[[], AbstractContextManager[Driven]]) -> None:
    try:
        with start() as driven:
            driven.open(site.url)
            assert driven.wait(OPENED) == ["ready", False]
            driven.wait(IS_KEPT)
            off(site)
            driven.open(site.url)
            assert driven.wait(OPENED) == ["ready", True]
    except Missing as missing:
        pytest.skip(str(missing))


# ---- Threads ---------------------------------------------------------------------------------------------------------


def test_from_the_second_visit_on_threads_are_allowed_on_any_host(returning: Visit, site: Site) -> None:
    kept(returning.open(site))
    assert not returning.page.evaluate("crossOriginIsolated")
    returning.page.reload()
    returning.awake()
    assert returning.page.evaluate("crossOriginIsolated")
    assert [url for url in returning.requests if "/run-threads-" in url]
    assert returning.tell(PROMPT, length=60).startswith(PROMPT)


def test_a_hosts_own_word_on_isolation_holds(returning: Visit, site: Site) -> None:
    site.headers |= {name: "unsafe-none" for name in ISOLATION}
    kept(returning.open(site))
    returning.page.reload()
    returning.awake()
    assert not returning.page.evaluate("crossOriginIsolated")


# ---- Versions --------------------------------------------------------------------------------------------------------


def test_a_newer_page_never_meets_an_older_one(
    returning: Visit, site: Site, built: Callable[[Path], Path], random_model: Path, newer_model: Path
) -> None:
    older, newer = site.folder, built(newer_model)
    kept(returning.open(site))
    returning.page.reload()
    returning.awake()

    site.folder = newer
    fresh = another_tab(returning).open(site)
    reload_until(fresh, "random 1")
    fresh.tell(PROMPT, temperature=0, length=60)
    assert_told(fresh, reference(newer_model, PROMPT, 60, temperature=0.0))
    assert newest_worker(fresh.page) == "installed"
    assert caches(fresh.page).keys() == {cache_of(site, older), cache_of(site, newer)}

    # The older page goes on with its own files, of which the host has none any more.
    returning.tell(PROMPT, temperature=0, length=60)
    assert_told(returning, reference(random_model, PROMPT, 60, temperature=0.0))
    (script,) = set(path.name for path in (older / "assets").glob("app-*.js"))
    size = "async (name) => (await (await fetch(name)).arrayBuffer()).byteLength"
    assert returning.page.evaluate(size, f"assets/{script}") == (older / "assets" / script).stat().st_size

    # Once reloaded it is the newer one, even while the older worker is there.
    reload_until(returning, "random 1")

    # When all are closed, the newer worker is alone; and it needs no network.
    returning.page.close()
    fresh.page.close()
    last = another_tab(returning)
    last.page.goto(site.url)
    last.awake()
    last.page.wait_for_function("() => navigator.serviceWorker.controller?.state === 'activated'")
    assert caches(last.page).keys() == {cache_of(site, newer)}
    off(site)
    last.page.reload()
    last.awake().tell(PROMPT, temperature=0, length=60)
    assert_told(last, reference(newer_model, PROMPT, 60, temperature=0.0))
    assert last.page.evaluate("crossOriginIsolated")


def test_without_a_network_an_older_page_is_whole(
    returning: Visit, site: Site, built: Callable[[Path], Path], random_model: Path, newer_model: Path
) -> None:
    """The network goes after the newer worker has come, and before it is in charge."""
    kept(returning.open(site))
    site.folder = built(newer_model)
    assert newest_worker(returning.page) == "installed"
    off(site)
    returning.page.reload()
    returning.awake().tell(PROMPT, temperature=0, length=60)
    assert_told(returning, reference(random_model, PROMPT, 60, temperature=0.0))


def test_a_page_built_without_takes_away_what_is_kept(returning: Visit, site: Site, removed: Path) -> None:
    kept(returning.open(site))
    site.folder = removed
    returning.page.reload()
    returning.awake()
    assert newest_worker(returning.page) == "installed"
    assert caches(returning.page), "they may be needed until the last page is closed"
    returning.page.close()
    last = another_tab(returning)
    last.page.goto(site.url + "LICENSES.txt")  # which does not wait for anything
    until(last.page, "navigator.serviceWorker.getRegistration().then((found) => !found)")
    until(last.page, "caches.keys().then((names) => names.length === 0)")
    last.open(site)
    assert not last.page.evaluate("navigator.serviceWorker.getRegistration().then(Boolean)")
    expect(last.page.get_by_text(KEPT)).to_be_hidden()


def test_a_page_built_without_keeps_nothing(returning: Visit, site: Site, removed: Path) -> None:
    site.folder = removed
    returning.open(site).tell(PROMPT, length=40)
    assert "/sw.js" not in " ".join(site.requests)
    assert caches(returning.page) == {}


def test_two_pages_of_one_origin_leave_each_other_alone(
    returning: Visit, site: Site, built: Callable[[Path], Path], newer_model: Path, tmp_path: Path
) -> None:
    """One below the other, as may be."""
    outer, inner = site.folder, tmp_path / "both/inner"
    shutil.copytree(outer, tmp_path / "both")
    shutil.copytree(built(newer_model), inner)
    site.folder = tmp_path / "both"
    kept(returning.open(site))
    second = another_tab(returning)
    second.page.goto(site.url + "inner/")
    kept(second.awake())
    names = {cache_of(site, outer), f"fabella {site.url}inner/ {version(inner)}"}
    assert caches(second.page).keys() == names
    off(site)
    for visit, model in ((returning, "random 0"), (second, "random 1")):
        visit.page.reload()
        visit.awake()
        assert model_name(visit.page) == model
    assert caches(second.page).keys() == names


# ---- Damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [flipped, cut_off, half, missing, web_page], ids=lambda fault: fault.__name__)
def test_what_comes_damaged_is_not_kept(returning: Visit, site: Site, fault: Fault) -> None:
    """A file that the first page does not need: only the service worker gets it."""
    (name,) = (path.name for path in site.folder.rglob("run-threads-simd-*.wasm"))
    site.faults[name] = fault
    returning.open(site)
    # Once, and once more past the browser's cache.
    wait_for(lambda: sum(path.endswith(name) for path in site.requests) >= 2, f"two requests for {name}")
    until(returning.page, "navigator.serviceWorker.getRegistration().then((found) => !found)")
    expect(returning.page.get_by_text(KEPT)).to_be_hidden()
    site.faults.clear()
    returning.page.reload()
    kept(returning.awake())
    off(site)
    returning.page.reload()
    returning.awake()


def test_what_comes_damaged_once_is_asked_for_again(returning: Visit, site: Site) -> None:
    (name,) = (path.name for path in site.folder.rglob("run-threads-simd-*.wasm"))

    def once(handler: Handler, file: Path) -> None:
        del site.faults[name]
        flipped(handler, file)

    site.faults[name] = once
    kept(returning.open(site))
    data = returning.page.evaluate(
        "async (name) => [...new Uint8Array(await (await fetch(name)).arrayBuffer())]", f"assets/{name}"
    )
    assert bytes(data) == (site.folder / "assets" / name).read_bytes()


def test_a_newer_worker_does_not_keep_an_older_index(
    returning: Visit, site: Site, built: Callable[[Path], Path], newer_model: Path
) -> None:
    """As a host's caches may give it for a while."""
    kept(returning.open(site))
    older, site.folder = site.folder, built(newer_model)
    site.faults["/"] = lambda handler, file: handler.answer((older / "index.html").read_bytes(), type="text/html")
    assert newest_worker(returning.page) == "redundant"
    site.faults.clear()
    assert newest_worker(returning.page) == "installed"


def test_a_host_may_add_lines_to_the_page(returning: Visit, site: Site) -> None:
    def added(handler: Handler, file: Path) -> None:
        handler.answer((site.folder / "index.html").read_bytes() + b"<!-- served by -->", type="text/html")

    site.faults["/"] = added
    kept(returning.open(site))


def test_what_is_damaged_where_it_is_kept_is_mended(returning: Visit, site: Site) -> None:
    kept(returning.open(site))
    damage = """async () => {
      const cache = await caches.open((await caches.keys())[0]);
      for (const request of await cache.keys()) {
        if (!/\\.bin$/.test(request.url)) continue;
        const data = new Uint8Array(await (await cache.match(request)).arrayBuffer());
        data[data.length - 9] ^= 1;
        await cache.put(request, new Response(data));
      }
    }"""
    returning.page.evaluate(damage)
    returning.page.reload()
    returning.becomes("failed")
    expect(returning.alert).to_contain_text("some of its bytes are others")
    returning.press_reload()
    returning.awake()
    for path in (site.folder / "assets").glob("*.*"):
        if path.suffix == ".bin":
            until(returning.page, f"caches.match({site.url + 'assets/' + path.name!r})")
    off(site)
    returning.page.reload()
    assert returning.awake().tell(PROMPT, length=40).startswith(PROMPT)


# ---- On a home screen ------------------------------------------------------------------------------------------------


def test_the_page_can_be_installed(returning: Visit, site: Site) -> None:
    kept(returning.open(site))
    session = returning.context.new_cdp_session(returning.page)
    manifest = session.send("Page.getAppManifest")
    assert manifest["errors"] == []
    about = json.loads(manifest["data"])
    assert about["name"] == returning.page.title()
    assert about["short_name"] == "Fabella"
    for member in ("start_url", "scope"):
        assert urljoin(manifest["url"], about[member]) == site.url
    for icon in about["icons"]:
        assert returning.page.evaluate(
            "(url) => fetch(url).then(({ ok }) => ok)", urljoin(manifest["url"], icon["src"])
        )
    assert session.send("Page.getInstallabilityErrors")["installabilityErrors"] in ([], IN_PRIVATE)


@pytest.mark.parametrize("size", [192, 512])
def test_the_icons_are_the_favicon(browser: Browser, size: int) -> None:
    """But for its corners, which home screens round themselves."""
    svg = (WEB / "favicon.svg").read_text("utf-8").replace(' rx="6"', "")
    page = browser.new_page(viewport={"width": size, "height": size})
    page.set_content(
        f"<style>* {{ margin: 0 }} svg {{ display: block; width: {size}px; height: {size}px }}</style>{svg}"
    )
    png = base64.b64encode((WEB / f"icon-{size}.png").read_bytes()).decode()
    difference = page.evaluate(DIFFERENCE, [png, base64.b64encode(page.screenshot()).decode()])
    page.close()
    assert difference < 8, "levels of 256, on average"
