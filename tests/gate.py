"""A gate before the turns and timers of a page and its worker, which a test opens by hand: nothing races against time.

The worker tells a story turn by turn, each begun by a message to itself; it rests before it chooses its threads, and a
download gives up after a long silence. With the gate closed none of that happens until the test says so. A turn ends by
the clock; so that it has as many tokens on every machine, the worker finds it a millisecond later whenever it looks.
"""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import expect

from builder.tools import WEB

from .conftest import Fault, Handler, Site, Visit


def _constant(script: str, name: str) -> str:
    """A number that a script of the page names."""
    text = (WEB / script).read_text(encoding="utf-8")
    (value,) = re.findall(rf"^(?:export )?const {name} = (\d+);", text, re.MULTILINE)
    return str(value)


REST, SILENCE = _constant("worker.js", "REST"), _constant("problem.js", "SILENCE")

# Timers of REST are rests, those of a second and more are silences; all others run as they are.
SCRIPT = f"""{{
  let turns = 0;
  const waiting = [];
  const timers = new Map();
  const go = () => {{
    for (; turns > 0 && waiting.length; turns--) waiting.shift()();
  }};
  const ofKind = (kind) => [...timers].filter(([, timer]) => timer.kind === kind);
  const fire = (kind) => {{
    for (const [id, timer] of ofKind(kind)) if (timers.delete(id)) timer.callback();
  }};
  let silent = false;
  const fallSilent = () => {{
    if (silent && ofKind("silences").length === 1) fire("silences", (silent = false));
  }};
  new BroadcastChannel("gate").onmessage = ({{ data }}) => {{
    if (data.turns) go((turns += data.turns));
    if (data.rest) fire("rests");
    if (data.silence) fallSilent((silent = ofKind("silences").length > 0));
  }};

  let now = 0;
  if (!globalThis.document) performance.now = () => ++now;

  const Channel = MessageChannel;
  globalThis.MessageChannel = class extends Channel {{
    constructor() {{
      super();
      const post = this.port2.postMessage.bind(this.port2);
      this.port2.postMessage = (message) => go(waiting.push(() => post(message)));
    }}
  }};
  globalThis.waitsFor = (awaited) => [...timers.values()].some(({{ milliseconds }}) => milliseconds === awaited);
  const {{ setTimeout, clearTimeout }} = globalThis;
  let last = 0;
  globalThis.setTimeout = (callback, milliseconds, ...rest) => {{
    const kind = milliseconds === {REST} ? "rests" : milliseconds >= 1000 ? "silences" : null;
    if (!kind) return setTimeout(callback, milliseconds, ...rest);
    timers.set(--last, {{ kind, milliseconds, callback }});
    return last;
  }};
  globalThis.clearTimeout = (id) => {{
    if (!timers.delete(id)) clearTimeout(id);
    else queueMicrotask(fallSilent); // after whoever puts another in its place
  }};
}}
"""


class Gate:
    """Closed, for all that the visitor's page and its worker will do. To be made before the page is opened."""

    def __init__(self, visit: Visit, site: Site) -> None:
        self.page = visit.page
        self.page.add_init_script(SCRIPT)
        (worker,) = (site.folder / "assets").glob("worker-*.js")
        site.faults[worker.name] = begun_with(SCRIPT)

    def turns(self, count: int) -> None:
        """Lets the story go on for so many turns, at once or as soon as they are wanted."""
        self._say({"turns": count})

    def open(self) -> None:
        """Lets all stories be told to their ends."""
        self.turns(1_000_000)

    def rest(self) -> None:
        """Lets the worker's rest be over."""
        self._say({"rest": True})

    def silence(self) -> None:
        """Lets a part of a silence's time pass, as soon as only one is waited for: all else has come."""
        self._say({"silence": True})

    def wait_for_worker(self) -> None:
        """Waits until the page waits for its worker's first word and nothing else, as downloads, any more."""
        self.page.wait_for_function(f"() => waitsFor(1000 * {SILENCE})")

    def _say(self, what: dict[str, object]) -> None:
        self.page.evaluate("(what) => (window.gate ??= new BroadcastChannel('gate')).postMessage(what)", what)


def stopped_story(visit: Visit, site: Site, prompt: str) -> None:
    """Opens the page and stops a story, the likeliest one, after two turns."""
    gate = Gate(visit, site)
    visit.open(site)
    visit.ask(prompt, temperature=0, length=300)
    gate.turns(2)
    visit.page.wait_for_function("() => notebook.received.filter(({ type }) => type === 'steps').length === 2")
    visit.page.keyboard.press("Escape")
    gate.open()
    expect(visit.page.get_by_text("You stopped the story here.")).to_be_visible()


def begun_with(script: str) -> Fault:
    """A script of the page, with another at its beginning."""

    def fault(handler: Handler, file: Path) -> None:
        handler.answer(script.encode() + file.read_bytes(), type="text/javascript")

    return fault
