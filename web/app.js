/**
 * The page: sends the prompt and the settings to the worker and draws what comes back.
 *
 * `readiness` says how far the worker is; `request` is the story that it tells, or will tell once it is ready. Together
 * they make the page's state, which `render` shows and body[data-state] names.
 */

import { damageOf, download, startWorker } from "./download.js";
import { Problem, SILENCE, causeOf, impossible, notStarted } from "./problem.js";
import { Story } from "./story.js";
import { ending, engineName, megabytes, pace, roughly, sentence, tokens } from "./words.js";

/** @import { Assets, Done, Failure, FromWorker, Model, Part, Settings, Steps, ToWorker } from "./messages.js" */
/** @import { WayOut } from "./problem.js" */

/**
 * @typedef {object} Request  a story that the visitor asked for
 * @property {number} id
 * @property {string} prompt
 * @property {Settings} settings
 * @property {boolean} begun  its first words are on the page
 * @property {boolean} stopped  Stop was pressed: nothing more of it is shown
 * @property {number} told  how many tokens of the model's own are on the page
 */

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} type
 * @returns {T}
 */
function element(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new TypeError(`index.html has no ${type.name} #${id}`);
  return found;
}

const form = element("ask", HTMLFormElement);
const promptBox = element("prompt", HTMLTextAreaElement);
const button = element("tell", HTMLButtonElement);
const statusLine = element("status", HTMLElement);
const meter = element("meter", HTMLElement);
const progress = element("progress", HTMLProgressElement);
const problem = element("problem", HTMLElement);
const again = element("again", HTMLButtonElement);
const storyBox = element("story", HTMLElement);
const endingBox = element("ending", HTMLElement);
const keepSeed = element("keep-seed", HTMLButtonElement);
const temperature = element("temperature", HTMLInputElement);
const topP = element("top_p", HTMLInputElement);
const topK = element("top_k", HTMLInputElement);
const length = element("length", HTMLInputElement);
const seed = element("seed", HTMLInputElement);

const story = new Story(storyBox);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** @type {Assets} */
const assets = JSON.parse(element("assets", HTMLScriptElement).text);

/** @type {Worker | undefined} */
let worker;
/** @type {"loading" | "ready" | "failed"} */
let readiness = "loading";
/** @type {Request | null} */
let request = null;
let requests = 0;
let context = 0; // the model's, in tokens
let ended = ""; // how the last story ended, in short
/** What is known of the model and its engine. @type {Record<string, string>} */
let facts = {};
/** Bytes of the download, part by part. @type {Record<string, { loaded: number, total: number }>} */
let arrived = {};
/** What `again` does. @type {WayOut} */
let wayOut = "again";

// ---- The worker ------------------------------------------------------------------------------------------------------

/** @param {ToWorker} message */
function send(message) {
  worker?.postMessage(message);
}

/** Starts a worker, in the place of one that failed. */
async function load() {
  readiness = "loading";
  facts = {};
  complain("");
  const { script, wasm, stdlib, wheel } = assets.python;
  arrived = {
    worker: { loaded: 0, total: assets.worker.bytes },
    model: { loaded: 0, total: assets.model.bytes },
    python: { loaded: 0, total: [script, wasm, stdlib, wheel].reduce((sum, { bytes }) => sum + bytes, 0) },
  };
  showFacts({ Name: assets.model.name, Size: megabytes(assets.model.bytes) });
  render();
  try {
    const problem = impossible();
    if (problem) throw problem;
    const name = "The storyteller’s script";
    // Hosts may add lines to a script, so it is compared only if it does not start.
    const file = await download({ ...at(assets.worker), sha256: undefined }, name, count);
    const started = startWorker(file);
    const broken = async (/** @type {string} */ reason) => {
      const problem = (await damageOf(file, assets.worker, name)) ?? (await causeOf(notStarted(name, reason)));
      if (started === worker) fail(problem);
    };
    const silence = setTimeout(broken, 1000 * SILENCE, "it says nothing");
    worker = started;
    worker.onmessage = ({ data }) => {
      clearTimeout(silence);
      receive(data);
    };
    worker.onerror = (event) => {
      clearTimeout(silence);
      broken(event.message);
    };
    send({ type: "load", assets, base: document.baseURI });
  } catch (error) {
    fail(await causeOf(error instanceof Problem ? error : notStarted("This page", error)));
  }
}

/** @param {Part} part */
const at = (part) => ({ ...part, url: new URL(part.url, document.baseURI).href });

/** @param {number} bytes  of the worker's script */
function count(bytes) {
  arrived.worker.loaded += bytes;
  renderDownload();
}

/** @param {FromWorker} message */
function receive(message) {
  switch (message.type) {
    case "progress":
      arrived[message.part] = message;
      renderDownload();
      break;
    case "ready":
      performance.mark("ready");
      readiness = "ready";
      showModel(message.model);
      if (request) sendRequest(request);
      render();
      break;
    case "engine":
      showFacts({ Engine: engineName(message.simd, message.threads) });
      break;
    case "steps":
      if (message.id === request?.id && !request.stopped) draw(message, request);
      break;
    case "done":
      if (message.id === request?.id) finish(message, request);
      break;
    case "error":
      if (message.id === null) fail(new Problem(message.message, message.way_out));
      else if (message.id === request?.id) refuse(message);
      break;
  }
}

/**
 * The worker cannot start, or cannot go on.
 * @param {Problem} problem
 */
function fail(problem) {
  worker?.terminate();
  worker = undefined;
  readiness = "failed";
  request = null;
  wayOut = problem.wayOut;
  complain(problem.message);
  render();
}

// ---- Telling ---------------------------------------------------------------------------------------------------------

/** Asks for a story, unless one is being told already. */
function tell() {
  if (request) return;
  complain("");
  ended = "";
  const settings = {
    temperature: temperature.valueAsNumber,
    top_p: topP.valueAsNumber,
    top_k: topK.valueAsNumber,
    length: length.valueAsNumber,
    seed: seed.value || String(crypto.getRandomValues(new Uint32Array(1))[0] || 1),
  };
  requests += 1;
  request = { id: requests, prompt: promptBox.value, settings, begun: false, stopped: false, told: 0 };
  if (readiness === "ready") sendRequest(request);
  else if (readiness === "failed") load();
  render();
}

/** @param {Request} request */
function sendRequest({ id, prompt, settings }) {
  send({ type: "tell", id, prompt, settings });
}

function stop() {
  if (request && readiness === "ready") {
    request.stopped = true;
    send({ type: "stop", id: request.id });
  } else {
    request = null; // it was still waiting
  }
  render();
}

/**
 * @param {Steps} message
 * @param {Request} request
 */
function draw({ steps, tokens_per_second }, request) {
  if (!request.begun) {
    request.begun = true;
    story.clear();
    endingBox.hidden = true;
    bringIntoView();
  }
  const own = steps.filter((step) => !step.from_prompt);
  story.add(
    steps
      .slice(0, steps.length - own.length)
      .map(({ text }) => text)
      .join(""),
    true,
  ); // the prompt comes first
  story.add(own.map(({ text }) => text).join(""), false);
  request.told += own.length;
  if (request.told > 0) {
    if (performance.getEntriesByName("first-token").length === 0) performance.mark("first-token");
    meter.textContent = tokens(request.told) + pace(tokens_per_second);
  }
}

/**
 * @param {Done} message
 * @param {Request} finished
 */
function finish({ reason: end, seconds, tokens_per_second }, { begun, stopped, told, settings }) {
  request = null;
  const reason = stopped ? "stopped" : end; // a story may end while Stop is on its way; its end is not shown then
  const [short, long] = ending(reason, context);
  ended = short;
  if (begun) {
    element("reason", HTMLElement).textContent = long;
    element("figures", HTMLElement).textContent =
      `${tokens(told)} in ${seconds.toFixed(1)} s${pace(tokens_per_second)}. Seed ${settings.seed}.`;
    keepSeed.value = settings.seed;
    keepSeed.hidden = settings.seed === seed.value;
    endingBox.dataset.reason = reason;
    endingBox.hidden = false;
  }
  render();
}

/**
 * The story cannot be told as it was asked for.
 * @param {Failure} message
 */
function refuse({ field, message }) {
  request = null;
  complain(message, field);
  render();
}

/** Scrolls to where the story begins, unless it begins in sight. Its end is not followed: it runs ahead of any reader. */
function bringIntoView() {
  const { top } = storyBox.getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.6) {
    storyBox.scrollIntoView({ behavior: calm.matches ? "instant" : "smooth" });
  }
}

// ---- Showing ---------------------------------------------------------------------------------------------------------

const STATUS = {
  loading: "The storyteller is waking up.",
  waiting: "The storyteller is still waking up. Your story begins right after.",
  ready: "The storyteller is ready.",
  telling: "Telling …",
  failed: "The storyteller is not awake.",
};

/** Shows the state; what changes from message to message is drawn by `draw` and `renderDownload`. */
function render() {
  const busy = /** @type {const} */ ({ loading: "waiting", ready: "telling", failed: "failed" });
  const state = request ? busy[readiness] : readiness;
  document.body.dataset.state = state;
  button.textContent = request ? "Stop" : "Tell";
  button.type = request ? "button" : "submit"; // so that Enter in a field never presses Stop
  statusLine.textContent = (state === "ready" && ended) || STATUS[state];
  meter.textContent = "";
  again.hidden = readiness !== "failed";
  again.textContent = wayOut === "reload" ? "Reload the page" : "Try again";
  storyBox.ariaBusy = String(state === "telling"); // a screen reader hears the story when it is whole
  if (readiness === "loading") renderDownload();
}

function renderDownload() {
  const parts = Object.values(arrived);
  progress.max = parts.reduce((sum, { total }) => sum + total, 0);
  progress.value = parts.reduce((sum, { loaded }) => sum + loaded, 0);
  const percent = Math.floor((100 * progress.value) / progress.max);
  meter.textContent = percent < 100 ? `${percent} % of ${megabytes(progress.max)}` : "any moment now";
}

/** Shows the settings' values beside their names. */
function renderSettings() {
  const values = [
    [temperature, temperature.valueAsNumber.toFixed(2)],
    [topP, topP.valueAsNumber < 1 ? topP.valueAsNumber.toFixed(2) : "off"],
    [topK, topK.valueAsNumber > 0 ? topK.value : "off"],
    [length, tokens(length.valueAsNumber)],
  ];
  for (const [control, value] of /** @type {[HTMLInputElement, string][]} */ (values)) {
    element(`${control.id}-value`, HTMLElement).textContent = value;
    control.ariaValueText = value;
  }
}

/** @param {Model} model */
function showModel(model) {
  context = model.context;
  length.max = String(context);
  renderSettings();
  element("scale", HTMLElement).textContent = `${roughly(model.parameters).replace(" ", "-")}-parameter`;
  showFacts({
    Name: model.name,
    Size: `${roughly(model.parameters)} parameters, ${megabytes(model.bytes)}`,
    Shape: `${model.layers} layers, ${model.dim} wide`,
    Vocabulary: tokens(model.vocab_size),
    Context: tokens(context),
    Licence: model.license ?? "not stated",
  });
}

/** @param {Record<string, string>} more  about the model and its engine, in place of what was known under that name */
function showFacts(more) {
  facts = { ...facts, ...more };
  const rows = Object.entries(facts).map(([name, value]) => {
    const row = document.createElement("div");
    row.appendChild(document.createElement("dt")).textContent = name;
    row.appendChild(document.createElement("dd")).textContent = value;
    return row;
  });
  element("model", HTMLElement).replaceChildren(...rows);
}

/**
 * @param {string} message  empty when all is well
 * @param {string | null} [field]  the id of the control that it is about
 */
function complain(message, field = null) {
  problem.textContent = sentence(message);
  if (message) problem.scrollIntoView({ block: "nearest" });
  for (const control of [promptBox, temperature, topP, topK, length, seed]) {
    control.ariaInvalid = String(control.id === field);
  }
}

// ---- The visitor -----------------------------------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  tell();
});

button.addEventListener("click", (event) => {
  if (button.type === "submit") return; // it says Tell
  event.preventDefault(); // stopping may make it a submit button before the browser asks what this click does
  if (event.detail < 2) stop(); // the second click of a double click means nothing
});

promptBox.addEventListener("keydown", (event) => {
  // Enter also ends a composition, as of Japanese; in Safari, which has then ended it already, only the key code says so.
  const composing = event.isComposing || event.keyCode === 229;
  if (event.key === "Enter" && !event.shiftKey && !composing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

again.addEventListener("click", () => {
  if (wayOut === "reload") {
    location.reload();
    return;
  }
  load();
  button.focus();
});

keepSeed.addEventListener("click", () => {
  seed.value = keepSeed.value;
  renderSettings();
  seed.focus();
});

form.addEventListener("input", renderSettings);

element("asleep", HTMLElement).remove(); // it speaks of a page whose script does not run
renderSettings();
if (assets.worker) load();
else fail(new Problem("This is the page's source, not the page: run “python build.py serve”."));
