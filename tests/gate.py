"""A gate before the turns and timers of a page and its worker, which a test opens by hand: nothing races against time.

The worker tells a story turn by turn, each begun by a message to itself; it rests before it chooses its threads, and a
download gives up after a long silence. With the gate closed none of that happens until the test says so.
"""

from __future__ import annotations

import re
from pathlib import Path

import build

from .conftest import Fault, Handler, Site, Visit

(REST,) = re.findall(r"^const REST = (\d+);", (build.WEB / "worker.js").read_text(encoding="utf-8"), re.MULTILINE)

# Timers of REST are rests, those of a second and more are silences; all others run as they are.
SCRIPT = f"""{{
  let turns = 0;
  const waiting = [];
  const timers = new Map();
  const go = () => {{
    for (; turns > 0 && waiting.length; turns--) waiting.shift()();
  }};
  const fire = (kind) => {{
    for (const [id, timer] of [...timers]) if (timer.kind === kind && timers.delete(id)) timer.callback();
  }};
  new BroadcastChannel("gate").onmessage = ({{ data }}) => {{
    if (data.turns) go((turns += data.turns));
    if (data.fire) fire(data.fire);
  }};

  const Channel = MessageChannel;
  globalThis.MessageChannel = class extends Channel {{
    constructor() {{
      super();
      const post = this.port2.postMessage.bind(this.port2);
      this.port2.postMessage = (message) => go(waiting.push(() => post(message)));
    }}
  }};
  const {{ setTimeout, clearTimeout }} = globalThis;
  let last = 0;
  globalThis.setTimeout = (callback, milliseconds, ...rest) => {{
    const kind = milliseconds === {REST} ? "rests" : milliseconds >= 1000 ? "silences" : null;
    if (!kind) return setTimeout(callback, milliseconds, ...rest);
    timers.set(--last, {{ kind, callback }});
    return last;
  }};
  globalThis.clearTimeout = (id) => timers.delete(id) || clearTimeout(id);
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
        self._say({"fire": "rests"})

    def silence(self) -> None:
        """Lets the time of a silence pass for every download that is going on: the long part of it, then the rest."""
        self._say({"fire": "silences"})
        self._say({"fire": "silences"})

    def _say(self, what: dict[str, object]) -> None:
        self.page.evaluate("(what) => (window.gate ??= new BroadcastChannel('gate')).postMessage(what)", what)


def begun_with(script: str) -> Fault:
    """A script of the page, with another at its beginning."""

    def fault(handler: Handler, file: Path) -> None:
        handler.answer(script.encode() + file.read_bytes(), type="text/javascript")

    return fault
