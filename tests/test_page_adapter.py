"""Adapters on the page: built in, dropped on it, taken off and put back, refused in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

import fabella
from builder.page import bundle
from builder.tools import BuildError

from .conftest import RANDOM_CONFIG, Site, Visit
from .random_models import write_random_adapter, write_random_model
from .stories import PROMPT
from .test_build import assets
from .test_page_code import LIKELIEST, Coder
from .test_shelf import drop

ON = "It speaks through the adapter “{}”."
OFF = "The adapter “{}” is off: it speaks in its own voice."


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two for the random model."""
    folder = tmp_path_factory.mktemp("adapters")
    return [write_random_adapter(folder / f"{seed}.gguf", RANDOM_CONFIG, type="F16", seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def adapted_page(random_model: Path, adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "dist"
    bundle(random_model, None, out, adapter=adapters[0])
    return out


@pytest.fixture
def adapted_site(adapted_page: Path) -> Iterator[Site]:
    site = Site(adapted_page)
    yield site
    site.close()


def put_on(visit: Visit, adapter: Path) -> Locator:
    """Drops the first adapter on the page, and returns the line that says so."""
    drop(visit, ("voice.gguf", adapter.read_bytes()))
    line = visit.page.locator("#adapter")
    expect(line).to_contain_text(ON.format("adapter 0"))
    return line


def told(model: Path, adapter: Path | None) -> str:
    with fabella.load(model, adapter=adapter) as loaded:
        return "".join(loaded.tell(PROMPT, temperature=0, length=40, loops=True))


def tell(visit: Visit) -> str:
    return visit.tell(PROMPT, temperature=0, length=40)


def test_a_page_is_built_with_one(
    visit: Visit, adapted_site: Site, random_model: Path, adapters: list[Path], adapted_page: Path
) -> None:
    page = (adapted_page / "index.html").read_text(encoding="utf-8")
    assert re.search(rf'<p id="adapter" class="hint">\s*<span [^>]*>{ON.format("adapter 0")}</span>', page)
    assert assets(adapted_page)["adapter"]["bytes"] == adapters[0].stat().st_size
    visit.open(adapted_site)
    line = visit.page.locator("#adapter")
    expect(line).to_contain_text(ON.format("adapter 0"))
    assert tell(visit) == told(random_model, adapters[0])
    line.get_by_role("button", name="Take it off").click()
    expect(line).to_contain_text(OFF.format("adapter 0"))
    assert tell(visit) == told(random_model, None)
    line.get_by_role("button", name="Put it back").click()
    expect(line).to_contain_text(ON.format("adapter 0"))
    assert tell(visit) == told(random_model, adapters[0])
    assert len([url for url in visit.requests if url.endswith(".gguf")]) == 2, "nothing is loaded anew"


def test_one_that_is_dropped_is_put_on_the_model_in_use(
    visit: Visit, site: Site, random_model: Path, adapters: list[Path]
) -> None:
    visit.open(site)
    line = visit.page.locator("#adapter")
    expect(line).to_be_hidden()
    assert tell(visit) == told(random_model, None)
    for number, adapter in enumerate(adapters):
        drop(visit, ("voice.gguf", adapter.read_bytes()))
        expect(line).to_contain_text(ON.format(f"adapter {number}"))
        expect(visit.page.get_by_role("dialog")).to_be_hidden()
        assert tell(visit) == told(random_model, adapter)
        assert not has_link(visit), "who follows it would not have one"
    line.get_by_role("button", name="Take it off").click()
    assert has_link(visit)


def has_link(visit: Visit) -> bool:
    """Whether a link is offered to whoever shares the story."""
    visit.page.get_by_role("button", name="Share", exact=True).click()
    dialog = visit.page.get_by_role("dialog", name="Share")
    expect(dialog).to_be_visible()
    shown = dialog.get_by_role("textbox", name="Link").count() == 1
    visit.page.keyboard.press("Escape")
    return shown


def test_a_storyteller_started_anew_has_it_before_it_tells(
    visit: Visit, site: Site, random_model: Path, adapters: list[Path]
) -> None:
    coder = Coder(visit, site)
    put_on(visit, adapters[0])
    coder.run(LIKELIEST)
    coder.told(1)
    coder.press("Let the sampler choose")
    visit.ask(PROMPT, temperature=0, length=40)
    assert coder.told(2) == told(random_model, adapters[0])
    visit.page.locator("#adapter").get_by_role("button", name="Take it off").click()
    coder.run(LIKELIEST)
    coder.told(3)
    coder.press("Let the sampler choose")
    visit.ask(PROMPT, temperature=0, length=40)
    assert coder.told(4) == told(random_model, None)
    expect(visit.page.locator("#adapter")).to_contain_text(OFF.format("adapter 0"))


def test_one_that_is_dropped_while_a_story_is_told_stops_it(visit: Visit, site: Site, adapters: list[Path]) -> None:
    visit.open(site)
    visit.ask(PROMPT, temperature=0, length=3000)
    visit.page.wait_for_function("() => notebook.received.some(({ type }) => type === 'steps')")
    put_on(visit, adapters[0])
    assert len(visit.received("done")) == 1
    expect(visit.alert).to_be_empty()
    assert tell(visit), "and the page goes on"


def test_one_for_another_model_is_refused_in_words(
    visit: Visit, site: Site, random_model: Path, adapters: list[Path], tmp_path: Path
) -> None:
    visit.open(site)
    line = put_on(visit, adapters[0])
    other = write_random_adapter(tmp_path / "other.gguf", replace(RANDOM_CONFIG, hidden_dim=128))
    drop(visit, ("other.gguf", other.read_bytes()))
    status = visit.page.get_by_role("tabpanel").get_by_role("status")
    expect(status).to_contain_text("other.gguf: ")
    expect(status).to_contain_text("it is for another model")
    drop(visit, ("cut.gguf", other.read_bytes()[:-100]))
    expect(status).to_contain_text("bytes too short")
    visit.page.keyboard.press("Escape")
    expect(line).to_contain_text(ON.format("adapter 0"))
    assert tell(visit) == told(random_model, adapters[0])


def test_another_model_has_none(visit: Visit, site: Site, adapters: list[Path], tmp_path: Path) -> None:
    visit.open(site)
    line = put_on(visit, adapters[0])
    other = write_random_model(tmp_path / "other.gguf", replace(RANDOM_CONFIG, n_layers=1))
    drop(visit, ("other.gguf", other.read_bytes()))
    row = visit.page.get_by_role("tabpanel").get_by_role("listitem").filter(has_text="yours")
    row.get_by_role("button", name="load").click()
    expect(line).to_be_hidden()
    visit.awake()
    expect(line).to_be_hidden()


def test_the_build_refuses_one_for_another_model(random_model: Path, tmp_path: Path) -> None:
    other = write_random_adapter(tmp_path / "other.gguf", replace(RANDOM_CONFIG, hidden_dim=128))
    with pytest.raises(BuildError, match=r"other\.gguf: .* it is for another model"):
        bundle(random_model, None, tmp_path / "dist", adapter=other)
    with pytest.raises(BuildError, match="this is no adapter"):
        bundle(random_model, None, tmp_path / "dist", adapter=random_model)
