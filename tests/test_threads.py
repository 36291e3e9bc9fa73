"""The page's threads: how many it chooses, where there are none, and that it does without where something fails."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from builder.serve import ISOLATION
from builder.tools import WEB

from .conftest import Site, Visit
from .faults import missing
from .gate import Gate, begun_with
from .stories import PROMPT, assert_told, reference

# Runs web/engine.js in Node with helpers that only note what they are told. How long a step takes with which number of
# threads is given for each time that they are chosen.
CHOOSE = """
const [url, cores, failing, silent, steps] = JSON.parse(process.argv[1]);
const told = [];
const arrived = [];
const start = () => {
  const helper = {};
  const number = told.push([]);
  helper.postMessage = (message) => {
    if (typeof message === "number") told[number - 1].push(message);
    else if (failing.includes(number)) arrived.push(Promise.resolve().then(() => helper.onerror(new Event("error"))));
    else if (!silent.includes(number)) arrived.push(Promise.resolve().then(() => helper.onmessage()));
  };
  return helper;
};
Object.defineProperty(globalThis, "navigator", { value: { hardwareConcurrency: cores } });
const { Engine } = await import(url);
let threads = 1;
const stacks = [];
const engine = new Engine("simd", {
  set_threads: (count) => (threads = count),
  allocate: (size) => size * stacks.push(true),
  release: (stack) => stacks.pop(),
});
engine.startHelpers(start, null, null);
await Promise.all(arrived);
const chosen = [];
for (const seconds of steps) {
  engine.chooseThreads(() => seconds[threads]);
  chosen.push([engine.threads, threads]);
}
console.log(JSON.stringify([chosen, told, stacks.length]));
"""


def choose(
    cores: int, *seconds: list[float], failing: tuple[int, ...] = (), silent: tuple[int, ...] = ()
) -> tuple[list[int], list[list[int]]]:
    """How many threads the page chooses, once for each list of seconds, and what each helper was told."""
    given = json.dumps([(WEB / "engine.js").as_uri(), cores, failing, silent, seconds])
    command = ["node", "--no-warnings", "--input-type=module", "--eval", CHOOSE, given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    chosen, told, stacks = json.loads(done.stdout)
    assert all(said == in_use for said, in_use in chosen)
    assert stacks == min(cores, 8) - 1 - len(failing)
    return [said for said, _in_use in chosen], told


@pytest.mark.parametrize(
    ("cores", "seconds", "threads"),
    [
        (1, [0, 1], 1),
        (2, [0, 1, 0.5], 2),
        (2, [0, 1, 0.96], 1),  # as good as no gain
        (2, [0, 1, 1.1], 1),
        (3, [0, 1, 0.6, 0.5], 3),
        (4, [0, 1, 0.6, 9, 0.5], 4),  # three are not tried
        (6, [0, 1, 0.6, 9, 0.5, 9, 0.4], 6),
        (8, [0, 1, 0.6, 9, 0.6, 9, 9, 9, 0.1], 2),
        (16, [0, *(1 / n for n in range(1, 17))], 8),  # as many as wasm/parallel.h knows
    ],
)
def test_takes_as_many_threads_as_make_it_faster(cores: int, seconds: list[float], threads: int) -> None:
    chosen, told = choose(cores, seconds)
    assert chosen == [threads]
    assert len(told) == min(cores, 8) - 1
    for number, messages in enumerate(told, 1):
        assert set(messages) <= {number}
        assert messages or number >= threads, "is asked for its help"


def test_chooses_anew_when_the_machine_has_more_or_less_else_to_do() -> None:
    quiet, busy = [0, 1, 0.6, 0.5], [0, 1, 1.2, 1.1]
    assert choose(3, quiet, busy, busy, quiet)[0] == [3, 1, 1, 3]


def test_helpers_that_cannot_start_are_done_without() -> None:
    seconds = [0, *(1 / n for n in range(1, 9))]
    chosen, told = choose(5, seconds, failing=(2,), silent=(4,))
    assert chosen == [3]
    assert [set(messages) for messages in told] == [{1}, set(), {2}, set()]
    assert choose(4, seconds, failing=(1, 3), silent=(2,)) == ([1], [[], [], []])


# ---- In the browser --------------------------------------------------------------------------------------------------


def engine(visit: Visit) -> Locator:
    """What the page says of its engine."""
    return visit.page.locator("#model div", has_text="Engine").locator("dd")


def words(state: dict[str, Any]) -> str:
    """What it should say after the message about it."""
    simd = {"simd": "SIMD", "relaxed": "relaxed SIMD"}[state["simd"]]
    return f"{simd}, {state['threads']} thread{'s' if state['threads'] > 1 else ''}"


def at_rest(visit: Visit) -> None:
    """Waits until the threads are chosen."""
    visit.page.wait_for_function("() => notebook.received.at(-1).type === 'engine'")


def loaded(visit: Visit, part: str) -> list[str]:
    """The names of the files that were asked for."""
    return [name for name in (url.rsplit("/", 1)[1] for url in visit.requests) if name.startswith(part)]


@pytest.fixture
def isolated(site: Site) -> Site:
    """The page around the random model, on a host that allows threads."""
    site.headers.update(ISOLATION)
    return site


def test_threads_where_the_host_allows_them(visit: Visit, isolated: Site, random_model: Path) -> None:
    isolated.headers["Content-Security-Policy"] = isolated.reporting_policy()
    visit.open(isolated)
    assert visit.page.evaluate("crossOriginIsolated")
    cores = visit.page.evaluate("navigator.hardwareConcurrency")
    expect(engine(visit)).not_to_be_empty()
    assert len(loaded(visit, "helper-")) == 1
    state = visit.received("engine")[0]
    (run,) = loaded(visit, "run-")
    assert run.startswith(f"run-threads-{state['simd']}-")
    assert 1 <= state["threads"] <= min(cores, 8)
    expect(engine(visit)).to_have_text(words(state))
    visit.tell(PROMPT, temperature=0, length=150)
    assert_told(visit, reference(random_model, PROMPT, 150, temperature=0.0))
    at_rest(visit)
    expect(engine(visit)).to_have_text(words(visit.received("engine")[-1]))
    assert visit.complaints == []
    assert isolated.reports == [], "the policy fits the helpers as well"


def test_threads_are_chosen_before_the_first_story_and_not_while_one_is_told(
    visit: Visit, isolated: Site, random_model: Path
) -> None:
    gate = Gate(visit, isolated)
    visit.open(isolated)

    def wait_for(type: str, count: int) -> None:
        js = "([type, count]) => notebook.received.filter((message) => message.type === type).length === count"
        visit.page.wait_for_function(js, arg=[type, count])

    visit.ask(PROMPT, temperature=0, length=1500)  # there was no rest yet
    gate.turns(2)
    wait_for("steps", 2)
    gate.rest()  # which comes too late: the story is being told
    gate.turns(1)
    wait_for("steps", 3)
    gate.open()
    wait_for("done", 1)
    assert_told(visit, reference(random_model, PROMPT, 1500, temperature=0.0))
    assert visit.tell(PROMPT, temperature=0, length=150), "the threads are still those of before"
    gate.rest()
    wait_for("engine", 2)
    types = [message["type"] for message in visit.page.evaluate("notebook.received")]
    assert [type for type, _ in itertools.groupby(types)] == [
        *("ready", "engine", "steps", "done", "steps", "done", "engine")
    ]


def test_one_thread_on_a_plain_host(visit: Visit, site: Site) -> None:
    visit.open(site)
    assert not visit.page.evaluate("crossOriginIsolated")
    (run,) = loaded(visit, "run-")
    assert not run.startswith("run-threads-")
    assert not loaded(visit, "helper-")
    expect(engine(visit)).to_have_text(re.compile("SIMD, 1 thread$"))


ANOTHER_DOT = """
const { Instance } = WebAssembly;
WebAssembly.Instance = function (module, imports) {
  const instance = new Instance(module, imports);
  return instance.exports.dot ? { exports: { dot: () => %d } } : instance;
};
"""


# The module that asks for the relaxed dot product is longer than the one that asks for any SIMD.
NO_RELAXED = "const { validate } = WebAssembly; WebAssembly.validate = (code) => code.length < 50 && validate(code)"


@pytest.mark.parametrize(
    ("machine", "build", "name"),
    [
        (NO_RELAXED, "simd", "SIMD"),
        # what the relaxed dot product makes of (127, 127, 127, 127) and (255, 255, 255, 255):
        (4 * 127 * 255, "relaxed", "relaxed SIMD"),  # AVX-VNNI
        (4 * 127 * -1, "relaxed", "relaxed SIMD"),  # Arm takes the second for signed as well
        (2 * 32767, "simd", "SIMD"),  # put together from older instructions
    ],
)
def test_the_build_that_suits_the_machine(
    visit: Visit, site: Site, random_model: Path, machine: str | int, build: str, name: str
) -> None:
    if isinstance(machine, int):
        machine = ANOTHER_DOT % machine

    (worker,) = (site.folder / "assets").glob("worker-*.js")
    site.faults[worker.name] = begun_with(f"{machine};\n")
    visit.open(site)
    (run,) = loaded(visit, "run-")
    assert run.startswith(f"run-{build}-")
    expect(engine(visit)).to_have_text(f"{name}, 1 thread")
    visit.tell(PROMPT, temperature=0, length=100)
    assert_told(visit, reference(random_model, PROMPT, 100, temperature=0.0))


def test_the_page_does_without_helpers_that_do_not_arrive(visit: Visit, isolated: Site, random_model: Path) -> None:
    (helper,) = (isolated.folder / "assets").glob("helper-*.js")
    isolated.faults[helper.name] = missing
    visit.open(isolated)
    expect(engine(visit)).to_have_text(re.compile("SIMD, 1 thread$"))
    visit.tell(PROMPT, temperature=0, length=100)
    assert_told(visit, reference(random_model, PROMPT, 100, temperature=0.0))
