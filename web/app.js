/**
 * The page: starts the views and the worker, and says what follows from what the visitor does and what the worker
 * answers. All of it is a change of the state (state.js), which the views draw.
 */

import { Bridge, Refusal } from "./bridge.js";
import { element } from "./dom.js";
import { Problem } from "./problem.js";
import { change, current } from "./state.js";
import { mountComposer } from "./views/composer.js";
import { mountFacts } from "./views/facts.js";
import { mountStatus } from "./views/status.js";
import { mountStory } from "./views/story.js";

/** @import { Assets, Done, EngineState, Progress, Steps } from "./messages.js" */
/** @import { Request } from "./state.js" */

/** @type {Assets} */
const assets = JSON.parse(element("assets", HTMLScriptElement).text);

/** @type {Bridge} */
let bridge;
let requests = 0;

// ---- The worker ------------------------------------------------------------------------------------------------------

/** Starts a worker, in the place of one that failed. */
async function load() {
  const { worker, python, model } = assets;
  const first = [worker, python.script, python.wasm, python.snapshot];
  change({
    worker: "loading",
    complaint: null,
    arrived: {
      worker: { loaded: 0, total: first.reduce((sum, { bytes }) => sum + bytes, 0) },
      model: { loaded: 0, total: model.bytes },
      python: { loaded: 0, total: 0 }, // which build of the engine it is, the worker finds out
    },
    model: { name: model.name, bytes: model.bytes },
    engine: null,
  });
  const started = new Bridge(assets, hear, (problem) => fail(/** @type {Problem} */ (problem)));
  bridge = started;
  const loaded = await started.load((bytes) => {
    if (started !== bridge) return; // what still arrives for one that has failed
    const { arrived } = current();
    change({ arrived: { ...arrived, worker: { ...arrived.worker, loaded: arrived.worker.loaded + bytes } } });
  });
  performance.mark("ready"); // for tests/figures.py
  change({ worker: "ready", model: loaded });
  const { request } = current();
  if (request) ask(request);
}

/** @param {Progress | EngineState} message */
function hear(message) {
  if (message.type === "progress") change({ arrived: { ...current().arrived, [message.part]: message } });
  else change({ engine: message });
}

/**
 * The worker cannot start, or cannot go on.
 * @param {Problem} problem
 */
function fail({ message, wayOut }) {
  change({ worker: "failed", request: null, complaint: { message, field: null, wayOut } });
}

function again() {
  if (current().complaint?.wayOut === "reload") {
    location.reload();
    return;
  }
  load();
  element("tell", HTMLButtonElement).focus();
}

// ---- Telling ---------------------------------------------------------------------------------------------------------

/** Asks for a story, unless one is being told already. */
function tell() {
  const { request: busy, worker, prompt, settings } = current();
  if (busy) return;
  const seed = settings.seed || String(crypto.getRandomValues(new Uint32Array(1))[0] || 1);
  const request = { id: ++requests, prompt, settings: { ...settings, seed }, question: null, stopped: false };
  change({ request, ended: null, complaint: null });
  if (worker === "ready") ask(request);
  else if (worker === "failed") load();
}

/** @param {Request} request */
async function ask(request) {
  const { prompt, settings } = request;
  const asked = bridge.ask({ type: "tell", prompt, settings }, (steps) => hearSteps(request.id, steps));
  change({ request: { ...request, question: asked.id } });
  try {
    finish(request, await asked.answer);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    change({ request: null, complaint: { message: error.message, field: error.field, wayOut: "again" } });
  }
}

function stop() {
  const { request } = current();
  if (request?.question) {
    change({ request: { ...request, stopped: true } });
    bridge.stop(request.question);
  } else {
    change({ request: null }); // it was still waiting
  }
}

/**
 * @param {number} id  the request's
 * @param {Steps} message
 */
function hearSteps(id, { steps, tokens_per_second: rate }) {
  const { request, story } = current();
  if (request?.id !== id || request.stopped) return;
  const before = story?.id === id ? story : { id, prompt: "", text: "", tokens: 0 };
  const given = steps.filter((step) => step.from_prompt); // the prompt comes first
  const own = steps.slice(given.length);
  const tokens = before.tokens + own.length;
  if (tokens > 0 && performance.getEntriesByName("first-token").length === 0) performance.mark("first-token");
  change({
    story: {
      ...before,
      prompt: before.prompt + text(given),
      text: before.text + text(own),
      tokens,
      rate,
      ending: null,
    },
  });
}

/** @param {Steps["steps"]} steps */
const text = (steps) => steps.map((step) => step.text).join("");

/**
 * @param {Request} request
 * @param {Done} done
 */
function finish({ id, settings: { seed } }, { reason, seconds, tokens_per_second: rate }) {
  const { request, story, settings, model } = current();
  const ended = request?.stopped ? "stopped" : reason; // it may end while Stop is on its way; its end is not shown then
  const ending = { reason: ended, context: model?.context ?? 0, seconds, seed, keep: seed !== settings.seed };
  change({ request: null, ended, story: story?.id === id ? { ...story, rate, ending } : story });
}

/** Puts the seed of the story into its field. */
function keepSeed() {
  const { story, settings } = current();
  if (!story?.ending) return;
  change({ settings: { ...settings, seed: story.ending.seed } });
  element("seed", HTMLInputElement).focus();
}

// ---- The start -------------------------------------------------------------------------------------------------------

element("asleep", HTMLElement).remove(); // it speaks of a page whose script does not run
mountComposer({ tell, stop });
mountStatus({ again });
mountStory({ keepSeed });
mountFacts();
if (assets.worker) load();
else fail(new Problem("This is the page's source, not the page: run “python build.py serve”."));
