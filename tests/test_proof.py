"""The page's self-test in a real browser: what agrees is counted, what differs is shown in full."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

import builder.page
from builder.page import bundle
from builder.proof import noted
from builder.tools import BuildError
from fabella.modelfile import Config
from fabella.selftest import POSITIONS

from .conftest import Site, Visit
from .random_models import write_random_model
from .stories import PROMPT
from .test_page import AXE, amid_a_story
from .test_share import serious

SMALL = Config(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=96)


@pytest.fixture
def shipped(built: Callable[[Path], Path], shipped_model: Path) -> Iterator[Site]:
    site = Site(built(shipped_model))
    yield site
    site.close()


def test_the_published_page_equals_pytorch(visit: Visit, shipped: Site) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=shipped.origin)
    story = visit.open(shipped).tell(PROMPT, temperature=0, length=60)
    visit.page.get_by_role("button", name="Equals PyTorch?").press("Enter")
    expect(visit.page.get_by_role("button", name="Equals PyTorch ✓")).to_be_visible()
    box = visit.page.locator("#proved")
    bits = f"{POSITIONS * 4096 * 32:,}"
    expect(box).to_contain_text(f"{bits} of {bits} bits of logits are those of wasmtime")
    expect(box).to_contain_text(re.compile(r"(\d+) of \1 tokens are those of PyTorch [\d.]+, greedily, in 3 stories"))
    expect(box).to_contain_text(re.compile(r"it takes PyTorch’s token at \d+ of \d+ places"))
    expect(box).to_contain_text(re.compile(r"Build: (relaxed )?SIMD, \d threads?\."))
    box.get_by_role("button", name="Copy the report").click()
    expect(box.get_by_text("The report is copied.")).to_be_visible()
    report = visit.page.evaluate("navigator.clipboard.readText()")
    assert re.search(r"^Model: .*, SHA-256 [0-9a-f]{64}$", report, re.M)
    assert "expected" not in report
    visit.page.evaluate(AXE.read_text())
    assert serious(visit.page) == []
    assert visit.tell(PROMPT, temperature=0, length=60) == story, "the model tells on"


def tampered(notes: Path, folder: Path) -> Path:
    """Notes in which two things are not as they are computed."""
    data: dict[str, Any] = json.loads(notes.read_text())
    data["logits"]["hashes"][3] = "0123456789abcdef"
    data["logits"]["next"][3] = 7
    path = folder / "noted.json"
    path.write_text(json.dumps(data))
    return path


def test_a_difference_is_shown_in_full(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.page, "noted", lambda gguf, model: tampered(noted(gguf, model), tmp_path))
    model = write_random_model(tmp_path / "small.gguf", SMALL, type="Q8_0")
    bundle(model, None, tmp_path / "dist")
    site = Site(tmp_path / "dist")
    try:
        visit.page.set_viewport_size({"width": 375, "height": 700})
        visit.open(site)
        visit.page.get_by_role("button", name="Computes right?").click()  # nobody has asked PyTorch
        box = visit.page.locator("#proved")
        expect(box).to_contain_text("Not the same: see below.")
        expect(box).to_contain_text(f"{63 * 300 * 32:,} of {64 * 300 * 32:,} bits")
        expect(box).to_contain_text("Nothing is noted of what PyTorch tells with this model.")
        expect(box).to_contain_text("Please report this to whoever keeps the page")
        shown = box.locator("pre").text_content() or ""
        assert re.search(
            r"^after token 4: expected 0123456789abcdef, then 7 \(.*\); found [0-9a-f]{16}, then ", shown, re.M
        )
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375
        visit.page.evaluate(AXE.read_text())
        assert serious(visit.page) == []
    finally:
        site.close()


def test_a_story_comes_first(visit: Visit, site: Site) -> None:
    amid_a_story(visit, site, turns=2)
    visit.page.get_by_role("button", name="Computes right?").click()
    expect(visit.page.locator("#proved")).to_contain_text("The model is busy: let it come to its end first.")


def test_notes_of_other_weights_are_refused(tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "small.gguf", SMALL, type="Q4_0")
    model.with_suffix(".torch.json").write_text(json.dumps({"weights": "0" * 64, "torch": "2", "stories": []}))
    with pytest.raises(BuildError, match=r"small\.torch\.json is about other weights: `python -m train\.reference"):
        noted(model, model)
