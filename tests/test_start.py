"""How Python starts in the page: from the snapshot that the build has taken, as if it had started by itself."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from playwright.sync_api import Browser

from builder.tools import ROOT

from .conftest import Site, Visit
from .faults import names
from .gate import begun_with
from .stories import PROMPT

# web/snapshot.js, there and back.
SCRIPT = """
import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { decompress, pack, putBack } from "./web/snapshot.js";

const before = Uint8Array.from({ length: 20 * 4096 }, (_, i) => (i * 31 + (i >> 8)) & 255);
for (const changed of [[], [0], [4095, 4096], [5 * 4096, 7 * 4096 + 1], [20 * 4096 - 1], [...before.keys()]]) {
  const after = before.slice();
  for (const at of changed) after[at] ^= 255;
  const file = pack(before, after, { a: [null] });
  const pages = new Set(changed.map((at) => at >> 12)).size;
  assert.equal(file.length >> 12, pages, "nothing but those pages and a short header");
  const memory = before.slice();
  const arrived = await decompress(new Blob([gzipSync(file)]).stream());
  assert.deepEqual(putBack(arrived, memory), { a: [null] });
  assert.deepEqual(memory, after);
  assert.throws(() => putBack(arrived, new Uint8Array(4096)), /4096 bytes of memory, not 81920/);
}
assert.throws(() => pack(before, before.slice(4096), {}), /memory grew/);
"""

# At the beginning of the worker, behind pyodide.asm.mjs: its Python runs what the test asks, once it has started.
ASKED = """
const create = globalThis.createPyodideModule;
globalThis.createPyodideModule = async (settings) => {
  const channel = new BroadcastChannel("python");
  channel.onmessage = ({ data }) => {
    if (data.code) channel.postMessage({ result: settings.API.public_api.runPython(data.code) });
  };
  return create(settings);
};
"""
ASK = """(code) => new Promise((resolve) => {
  const channel = new BroadcastChannel("python");
  channel.onmessage = ({ data }) => resolve(data.result);
  channel.postMessage({ code });
})"""


def asked(visit: Visit, code: str) -> Any:
    """What the page's Python says to an expression, by JSON."""
    return json.loads(visit.page.evaluate(ASK, f"import json\njson.dumps({code})"))


def test_a_snapshot_holds_the_pages_that_have_changed() -> None:
    subprocess.run(["node", "--input-type=module", "--eval", SCRIPT], cwd=ROOT, check=True)


def test_chance_is_another_with_each_visit(visit: Visit, site: Site) -> None:
    """The snapshot is the same for all."""
    site.faults |= names(site, "worker-*.js", begun_with(ASKED))
    drawn = []
    for _ in range(2):
        visit.open(site)
        drawn.append(asked(visit, "[__import__('random').random(), __import__('os').urandom(8).hex()]"))
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


def test_a_story_needs_nothing_that_is_not_in_the_snapshot(visit: Visit, site: Site) -> None:
    site.faults |= names(site, "worker-*.js", begun_with(ASKED))
    visit.open(site)
    modules = asked(visit, "sorted(__import__('sys').modules)")
    assert {"fabella.page", "fabella.chat", "jinja2.sandbox", "json"} <= set(modules)
    assert visit.tell(PROMPT, length=30).startswith(PROMPT)
    assert asked(visit, "sorted(__import__('sys').modules)") == modules


def test_the_rest_of_the_standard_library_comes_after_it(visit: Visit, site: Site) -> None:
    site.faults |= names(site, "worker-*.js", begun_with(ASKED))
    visit.open(site)
    assert asked(visit, "'statistics' in __import__('sys').modules") is False
    while not asked(visit, "__import__('os').path.getsize('/lib/python314.zip')"):
        pass
    assert asked(visit, "__import__('statistics').median([3, 1, 2])") == 2


def test_on_ios_where_python_calls_functions_another_way(browser: Browser, site: Site) -> None:
    """Pyodide knows it by its name; the snapshot is taken where the other way works."""
    told = []
    for name in (None, "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Safari/604.1"):
        context = browser.new_context(user_agent=name)
        visit = Visit(context)
        visit.open(site)
        visit.page.get_by_label("Seed").fill("7")
        told.append(visit.tell(PROMPT, length=40))
        context.close()
    assert told[0] == told[1]
