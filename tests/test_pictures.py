"""Pictures of the page for people to look at, in out/screenshots/: each room, desktop and telephone, in both lights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from .conftest import Shoot, Site, Visit
from .test_shelf import drop, open_shelf
from .test_talk import MARKDOWN, answer_with
from .test_talk import model as talking_model  # noqa: F401 - a fixture

DEVICES = [("desktop", 1200, 900), ("phone", 375, 800)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "width", "height"), DEVICES)
def test_pictures_for_people(
    visit: Visit,
    built: Callable[[Path], Path],
    shipped_model: Path,
    talking_model: Path,  # noqa: F811
    shoot: Shoot,
    device: str,
    width: int,
    height: int,
    scheme: Any,
) -> None:
    page = visit.page
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)

    def picture(name: str, **how: Any) -> None:
        shoot(page, f"{device}-{scheme}-{name}", **how)
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    site = Site(built(shipped_model))
    try:
        visit.open(site)
        picture("ready")
        visit.tell("Once upon a time, a little fox found a tiny door in an old tree.", seed=1)
        picture("story")
        page.evaluate("scrollTo(0, 0)")
        picture("whole", full_page=True)
        open_shelf(visit)
        picture("shelf")
        open_shelf_again(page)
        picture("kept")
        page.keyboard.press("Escape")
        drop(visit, ("poem.gguf", b"Once upon a time there was no model at all"))
        expect(page.get_by_role("tabpanel").get_by_role("status")).to_contain_text("poem.gguf: ")
        picture("refused")

        site.folder = built(talking_model)
        visit.open(site)
        page.evaluate("() => { notebook.worker.postMessage = (data) => notebook.sent.push(data); }")
        page.get_by_role("textbox", name="You", exact=True).fill("What can you write?")
        page.keyboard.press("Enter")
        answer_with(visit, MARKDOWN)
        picture("chat")
        picture("chat-whole", full_page=True)
    finally:
        site.close()


def open_shelf_again(page: Page) -> None:
    """Turns to the other side of the open shelf."""
    page.get_by_role("tab", name="Kept").click()
    expect(page.get_by_role("tabpanel").get_by_role("listitem")).not_to_have_count(0)
