"""The page on bad days: too little memory, a tab that is put to sleep, a visitor who leaves and comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from builder.install import find_browser
from fabella.modelfile import Config

from .conftest import BROWSER_ARGUMENTS, RANDOM_CONFIG, Site, Visit
from .gate import Gate
from .random_models import write_random_model
from .stories import PROMPT

# As much WebAssembly memory as some telephones give a page: 64 MiB, in pages of 64 KiB.
LITTLE = "--js-flags=--wasm-max-mem-pages=1024"
LARGE = Config(dim=512, hidden_dim=3072, n_layers=4, n_heads=8, n_kv_heads=8, vocab_size=400, seq_len=100)


@pytest.fixture
def large(built: Callable[[Path], Path], tmp_path: Path) -> Iterator[Site]:
    """A page whose model takes 92 MB."""
    site = Site(built(write_random_model(tmp_path / "large.gguf", LARGE)))
    yield site
    site.close()


def test_a_model_that_is_too_large_for_the_machine_is_refused_in_words(browser: Browser, large: Site) -> None:
    little = browser.browser_type.launch(executable_path=find_browser(), args=[*BROWSER_ARGUMENTS, LITTLE])
    try:
        visit = Visit(little.new_context(reduced_motion="reduce"))
        visit.open(large, ready=False)
        expect(visit.alert).to_contain_text("memory")
        expect(visit.again_button).to_be_visible()
    finally:
        little.close()


def test_a_tab_that_sleeps_in_the_middle_of_a_story_goes_on(visit: Visit, site: Site) -> None:
    whole = visit.open(site).tell(PROMPT, temperature=0, length=600)
    gate = Gate(visit, site)
    visit.open(site)
    session = visit.context.new_cdp_session(visit.page)
    visit.ask(PROMPT, temperature=0, length=600)
    gate.turns(2)
    visit.page.wait_for_function("() => notebook.received.filter(({ type }) => type === 'steps').length === 2")
    session.send("Page.setWebLifecycleState", {"state": "frozen"})
    session.send("Page.setWebLifecycleState", {"state": "active"})
    gate.open()
    expect(visit.tell_button).to_be_visible()
    assert visit.story.text_content() == whole


def test_whoever_comes_back_finds_the_story_and_can_go_on(visit: Visit, site: Site) -> None:
    story = visit.open(site).tell(PROMPT, temperature=0, length=60, seed=3)
    visit.page.goto("about:blank")
    visit.page.go_back()
    expect(visit.story).to_have_text(story)
    visit.awake()
    visit.setting("Length").fill(str(RANDOM_CONFIG.seq_len))
    visit.page.get_by_role("button", name="Go on").click()
    visit.page.wait_for_function("() => notebook.received.some(({ type }) => type === 'done')")
    expect(visit.tell_button).to_be_visible()
    assert (visit.story.text_content() or "").startswith(story)
    visit.requests = [url for url in visit.requests if not url.startswith("about:")]
