"""The shelf: other models, from the builder or the visitor's disk, and what was told and kept here."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from builder.page import bundle
from fabella.modelfile import Config

from .conftest import Site, Visit
from .llama2c_files import model_bin, tokenizer_bin
from .random_models import write_random_model
from .stories import PROMPT, reference
from .test_chat import TEMPLATE

SMALL = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, seq_len=300)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "own": write_random_model(folder / "own.gguf", SMALL),
        "talks": write_random_model(folder / "talks.gguf", SMALL, template=TEMPLATE, seed=1),
        "dropped": write_random_model(folder / "dropped.gguf", SMALL, seed=2),
    }


@pytest.fixture(scope="module")
def page(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "dist"
    bundle(models["own"], None, out, offered=[str(models["talks"])])
    return out


@pytest.fixture
def site(page: Path) -> Iterator[Site]:
    site = Site(page)
    yield site
    site.close()


def open_shelf(visit: Visit, side: str = "Models") -> Locator:
    visit.page.locator("#shelf-button").click()
    visit.page.get_by_role("tab", name=side).click()
    return visit.page.get_by_role("tabpanel")


def sent(visit: Visit, type: str) -> list[dict[str, Any]]:
    return [message for message in visit.page.evaluate("notebook.sent") if message["type"] == type]


def drop(visit: Visit, *files: tuple[str, bytes]) -> None:
    """Drops files on the page."""
    visit.page.evaluate(
        """(files) => {
            const dropped = new DataTransfer();
            for (const { name, bytes } of files) {
                const data = Uint8Array.from(atob(bytes), (sign) => sign.charCodeAt(0));
                dropped.items.add(new File([data], name));
            }
            window.dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true }));
        }""",
        [{"name": name, "bytes": b64encode(data).decode()} for name, data in files],
    )


def told(visit: Visit, model: Path) -> None:
    """The page tells what this model tells."""
    steps = reference(model, PROMPT, 30, temperature=0.0)
    assert visit.tell(PROMPT, temperature=0, length=30) == "".join(step.text for step in steps)


def test_an_offered_model_is_loaded_when_it_is_wanted(visit: Visit, site: Site, models: dict[str, Path]) -> None:
    visit.open(site)
    assert not [path for path in site.requests if "talks" in path]
    shelf = open_shelf(visit)
    row = shelf.get_by_role("listitem").filter(has_text="talks ·")
    expect(row).to_contain_text("300 tokens of context")
    expect(row).to_contain_text("needs about")
    row.get_by_role("button", name="get").click()
    visit.page.wait_for_function("() => notebook.received.filter(({ type }) => type === 'ready').length === 1")
    expect(visit.page.locator("#chat")).to_be_visible()
    expect(visit.page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    shelf = open_shelf(visit)
    expect(shelf.get_by_role("listitem").filter(has_text="talks ·")).to_contain_text("in use")
    shelf.get_by_role("button", name="load").first.click()
    visit.becomes("ready")
    told(visit, models["own"])


def test_a_dropped_model_says_what_it_is_before_it_is_loaded(visit: Visit, site: Site, models: dict[str, Path]) -> None:
    visit.open(site)
    drop(visit, ("mine.gguf", models["dropped"].read_bytes()))
    shelf = visit.page.get_by_role("tabpanel")
    row = shelf.get_by_role("listitem").filter(has_text="yours")
    expect(row).to_contain_text("300 tokens of context")
    assert len(sent(visit, "load")) == 1, "nothing is loaded yet"
    row.get_by_role("button", name="load").click()
    visit.page.wait_for_function("() => notebook.received.filter(({ type }) => type === 'ready').length === 1")
    visit.awake()
    told(visit, models["dropped"])
    visit.page.reload()  # it is kept, and this tab remembers that it was in use
    visit.becomes("ready")
    told(visit, models["dropped"])
    shelf = open_shelf(visit)
    shelf.get_by_role("button", name="load").first.click()
    visit.becomes("ready")
    shelf = open_shelf(visit)
    mine = shelf.get_by_role("listitem").filter(has_text="yours")
    mine.get_by_role("button", name="remove").click()
    expect(shelf.get_by_role("listitem").filter(has_text="yours")).to_have_count(0)


def test_a_llama2c_model_is_dropped_with_its_tokenizer(visit: Visit, site: Site) -> None:
    visit.open(site)
    drop(visit, ("model.bin", model_bin()), ("tokenizer.bin", tokenizer_bin()))
    row = visit.page.get_by_role("tabpanel").get_by_role("listitem").filter(has_text="yours")
    row.get_by_role("button", name="load").click()
    visit.page.wait_for_function("() => notebook.received.filter(({ type }) => type === 'ready').length === 1")
    visit.awake()
    expect(open_shelf(visit)).to_contain_text("not kept on this machine, because it is two files")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("poem.gguf", b"Once upon a time there was no model at all" * 9, "poem.gguf: "),
        ("empty.gguf", b"", "empty.gguf: "),
        ("cut.gguf", b"GGUF\x03\x00\x00\x00" + bytes(8), "cut.gguf: "),
        ("<img src=x onerror=document.title=1>.gguf", b"GGUF", "<img src=x onerror=document.title=1>.gguf"),
    ],
)
def test_a_file_that_cannot_run_is_refused_in_a_sentence(
    visit: Visit, site: Site, name: str, data: bytes, says: str
) -> None:
    visit.page.route("**/python-stdlib-*", lambda route: None)  # it does not take all of Python's library
    title = visit.open(site).page.title()
    drop(visit, (name, data))
    status = visit.page.get_by_role("tabpanel").get_by_role("status")
    expect(status).to_contain_text(says)
    expect(status).to_contain_text(".")
    visit.page.keyboard.press("Escape")
    assert visit.page.title() == title
    assert visit.tell(PROMPT, length=20), "the page goes on with its model"


def test_leaves_are_listed_searched_renamed_and_deleted(visit: Visit, site: Site) -> None:
    visit.open(site)
    first = visit.tell("A fox", temperature=0, length=20)
    visit.tell("A bear", temperature=0, length=20)
    shelf = open_shelf(visit, "Kept")
    expect(shelf.get_by_role("listitem")).to_have_count(2)
    shelf.get_by_role("searchbox", name="Search").fill("fox")
    expect(shelf.get_by_role("listitem")).to_have_count(1)
    shelf.get_by_role("button", name="rename A fox").click()
    shelf.get_by_role("textbox", name="New name").fill("Reynard")
    shelf.get_by_role("button", name="Save").click()
    shelf.get_by_role("searchbox", name="Search").fill("")
    shelf.get_by_role("button", name="Open Reynard").click()
    expect(visit.story).to_have_text(first)
    expect(visit.prompt).to_have_value("A fox")
    shelf = open_shelf(visit, "Kept")
    shelf.get_by_role("button", name="delete Reynard").click()
    shelf.get_by_role("button", name="Leave it").click()
    shelf.get_by_role("button", name="delete Reynard").click()
    shelf.get_by_role("button", name="Delete for good").click()
    expect(shelf.get_by_role("listitem")).to_have_count(1)
    visit.page.keyboard.press("Escape")
    expect(visit.story).to_have_text("")
    visit.page.reload()
    visit.awake()
    expect(open_shelf(visit, "Kept").get_by_role("listitem")).to_have_count(1)


def test_what_is_exported_can_be_imported(visit: Visit, site: Site, tmp_path: Path) -> None:
    visit.open(site)
    story = visit.tell("A fox", temperature=0, length=20)
    shelf = open_shelf(visit, "Kept")
    with visit.page.expect_download() as download:
        shelf.get_by_role("button", name="Export all").click()
    file = tmp_path / "kept.json"
    download.value.save_as(file)
    shelf.get_by_role("button", name="delete A fox").click()
    shelf.get_by_role("button", name="Delete for good").click()
    expect(shelf.get_by_role("listitem")).to_have_count(0)
    with visit.page.expect_file_chooser() as chooser:
        shelf.get_by_role("button", name="Import").click()
    chooser.value.set_files(file)
    shelf.get_by_role("button", name="Open A fox").click()
    expect(visit.story).to_have_text(story)


def leaf(**changes: Any) -> dict[str, Any]:
    turn: dict[str, Any] = {
        "parent": None,
        "tokens": [],
        "settings": None,
        "reason": None,
        "seconds": 0,
        "rate": 0,
        "dropped": 0,
    }
    turns = [
        turn | {"id": 0, "role": "user", "text": "<img src=x onerror=document.title=1>"},
        turn
        | {"id": 1, "parent": 0, "role": "assistant", "text": "<script>document.title=1</script>", "reason": "end"},
    ]
    whole = {"id": "0" * 24, "kind": "story", "title": "", "system": "", "changed": 1, "turns": turns}
    return whole | {"model": {"id": "x", "name": "<b>y</b>"}, "picked": {"": 0, "0": 1}} | changes


HARMFUL = {
    "no JSON": "{",
    "another file": "[]",
    "no leaf": {"fabella": 1, "leaves": [None]},
    "an id": leaf(id="../x"),
    "a circle": leaf(turns=[leaf()["turns"][0] | {"parent": 0}]),
    "a branch to nowhere": leaf(picked={"": 7}),
    "a branch to another's": leaf(picked={"": 1}),
    "turns": leaf(turns="many"),
    "a role": leaf(turns=[leaf()["turns"][0] | {"role": "system"}]),
    "tokens": leaf(turns=[leaf()["turns"][0] | {"tokens": ["<b>"]}]),
    "a time": leaf(changed="now"),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_a_damaged_import_is_refused_and_loses_nothing(visit: Visit, site: Site, what: str) -> None:
    visit.open(site)
    visit.tell("A fox", temperature=0, length=20)
    content = HARMFUL[what]
    if isinstance(content, dict) and "leaves" not in content:
        content = {"fabella": 1, "leaves": [content]}
    data = content if isinstance(content, str) else json.dumps(content)
    drop(visit, ("kept.json", data.encode()))
    shelf = visit.page.get_by_role("tabpanel")
    expect(shelf.get_by_role("status")).to_contain_text("kept.json: ")
    expect(shelf.get_by_role("listitem")).to_have_count(1)


def test_hostile_texts_in_an_import_stay_text(visit: Visit, site: Site) -> None:
    title = visit.open(site).page.title()
    drop(visit, ("kept.json", json.dumps({"fabella": 1, "leaves": [leaf(), leaf(id="1" * 24, kind="chat")]}).encode()))
    shelf = visit.page.get_by_role("tabpanel")
    expect(shelf.get_by_role("listitem")).to_have_count(2)
    assert shelf.locator("img, script, b").count() == 0
    shelf.get_by_role("button", name="Open").first.click()
    expect(visit.page.locator("main")).to_contain_text("<script>document.title=1</script>")
    assert visit.page.locator("main img, main script, main b").count() == 0
    assert visit.page.title() == title
