/**
 * The bridge between the page and Python: it loads the model, the engine and Pyodide side by side, hands each story to
 * py/fabella/page.py and passes on what comes back. It decides nothing about the story.
 */

import { download } from "./download.js";
import { pickBuild, startEngine } from "./engine.js";
import { LocalFile } from "./kept-file.js";
import { openModel } from "./open-model.js";
import { Problem, causeOf, impossible } from "./problem.js";
import { addModules, completePython, startPython } from "./python.js";
import { seal } from "./seal.js";

/** @import { Engine } from "./engine.js" */
/** @import { Adapt, Call, Card, Count, Describe, FromWorker, Load, Part, Progress, Say, Tell, ToWorker, UseCode } from "./messages.js" */

/** Milliseconds between messages to the page, and between looks at those from it: a turn costs many tokens' time. */
const FRAME = 50;

/** Milliseconds without a story after which the page has drawn what it was told last. */
const REST = 250;

/** Milliseconds for which a story is told that nobody hears. */
const REHEARSAL = 500;

const scope = /** @type {DedicatedWorkerGlobalScope} */ (/** @type {unknown} */ (globalThis));

/**
 * Python's side, once it is loaded. The methods are bound once: a look-up would make a new proxy for every call.
 * @type {{
 *   tell: (request: string) => void,
 *   say: (request: string) => void,
 *   advance: (milliseconds: number) => string,
 *   stop: () => void,
 *   count: (request: string) => number,
 *   strange: (text: string) => number,
 *   forward_time: (milliseconds: number) => number,
 *   adapt: (file: unknown) => string,
 *   use_adapter: (on: boolean) => void,
 *   use_code: (make: unknown, source: string, begins: () => void) => string,
 * }}
 */
let storyteller;

/** run.wasm and its threads, once it is started. @type {Engine} */
let engine;

/**
 * The words of a Python exception that is meant for the visitor, or null.
 * @type {(error: unknown) => { field: string | null, message: string } | null}
 */
let explain = () => null;

/** Python's Page, of which these are methods. @type {any} */
let page;

/** Pyodide, once it is started. @type {Promise<any>} */
let awake = Promise.reject(new Error("nothing was loaded"));
awake.catch(() => {});

/** Whether a model is loaded, or about to be: that is done once. */
let loads = false;

/** Fetches our further modules of Python's. @type {() => Promise<void>} */
let fetchFurther;

/** Done when they are there, once somebody wants them. @type {Promise<void> | null} */
let further = null;

/** The story being told. @type {{ id: number, tokens: number, seconds: number, tokens_per_second: number } | null} */
let story = null;
let resting = 0; // a timer
let rehearsed = false;

// Python works for a frame at a time. Then a message to ourselves queues up behind the page's, so that Stop is heard.
const nextTurn = new MessageChannel();
nextTurn.port1.onmessage = ({ data: id }) => {
  if (id === story?.id) advance();
};

scope.onmessage = (/** @type {MessageEvent<ToWorker>} */ { data: message }) => {
  if (message.type === "load") {
    if (loads) return; // a visitor's code might ask for it, and so for files
    loads = true;
    load(message).catch(async (error) => {
      fail(null, await causeOf(error), "The model could not be loaded: ");
    });
  } else if (message.type === "describe") {
    describe(message).catch((error) => refuse(message.id, error));
  } else if (message.type === "tell" || message.type === "say") {
    begin(message);
  } else if (message.type === "count") {
    count(message);
  } else if (message.type === "adapt") {
    adapt(message);
  } else if (message.type === "call") {
    call(message).catch((error) => refuse(message.id, error));
  } else if (message.type === "code") {
    useCode(message).catch((error) => refuse(message.id, error));
  } else if (message.id === story?.id) {
    stop();
  }
};

/** @param {FromWorker} message */
function send(message) {
  scope.postMessage(message);
}

// ---- Telling ---------------------------------------------------------------------------------------------------------

/** @param {Tell | Say} message */
async function begin({ id, type, ...request }) {
  stop();
  story = { id, tokens: 0, seconds: 0, tokens_per_second: 0 };
  try {
    rehearsed = true; // or will be, by this
    if (request.settings.look) await wantFurther();
    if (story?.id !== id) return; // it was stopped meanwhile
    if (engine.threads === 0) chooseThreads(); // there was no rest yet
    storyteller[type](JSON.stringify(request));
  } catch (error) {
    if (story?.id !== id) return;
    story = null;
    if (error instanceof Problem) refuse(id, error);
    else fail(id, error);
    return;
  }
  nextTurn.port2.postMessage(id);
}

/** @param {Count} message */
function count({ id, type: _, ...request }) {
  try {
    const tokens = storyteller.count(JSON.stringify(request));
    const text = request.prompt ?? request.messages?.at(-1)?.content ?? "";
    send({ type: "counted", id, tokens, strange: storyteller.strange(text) });
  } catch (error) {
    fail(id, error);
  }
}

/** Ends the story that is being told, if one is. */
function stop() {
  if (!story) return;
  storyteller.stop();
  send({ type: "done", reason: "stopped", ...story });
  finish();
}

/** @param {Adapt} message */
function adapt({ id, file, on }) {
  try {
    stop();
    rehearsed = true; // what is being rehearsed could not go on
    const said = file ? storyteller.adapt(new LocalFile(file)) : null;
    storyteller.use_adapter(on);
    send({ type: "adapted", id, adapter: said ? JSON.parse(said) : null });
  } catch (error) {
    refuse(id, error);
  }
}

/** What is not in Python's snapshot, because few want it. */
async function wantFurther() {
  further ??= fetchFurther();
  await further.catch((error) => {
    further = null; // the next time may go better
    throw error;
  });
}

/** @param {Call} message */
async function call({ id, module, request, file, alone }) {
  await wantFurther();
  if (alone) {
    stop();
    clearTimeout(resting);
  }
  if (!rehearsed) storyteller.stop(); // the rehearsal
  rehearsed = true;
  if (engine.threads === 0) chooseThreads();
  const { answer } = (await awake).pyimport(`fabella.${module}`);
  send({ type: "called", id, answer: answer(page, request, file && new LocalFile(file)) });
  if (alone) rest();
}

/** @param {UseCode} message */
async function useCode({ id, source }) {
  await wantFurther();
  seal(scope);
  rehearsed = true;
  const { Code } = (await awake).pyimport("fabella.live");
  const said = storyteller.use_code(Code, source, () => send({ type: "calls" }));
  send({ type: "coded", id, ...JSON.parse(said) });
}

/** Goes on with the story for one frame. */
function advance() {
  const { id } = /** @type {NonNullable<typeof story>} */ (story);
  try {
    const { steps, end, printed, problem, ...figures } = JSON.parse(storyteller.advance(FRAME));
    send({ type: "steps", id, steps, tokens_per_second: figures.tokens_per_second, printed });
    if (end) {
      send({ type: "done", id, reason: end, ...figures, problem });
      finish();
    } else {
      story = { id, ...figures };
      nextTurn.port2.postMessage(id);
    }
  } catch (error) {
    finish();
    fail(id, error);
  }
}

function finish() {
  story = null;
  rest();
}

/** Chooses the threads for the next story, once nothing else has to be done. */
function rest() {
  clearTimeout(resting);
  resting = setTimeout(() => {
    try {
      if (story) return;
      chooseThreads();
      if (!rehearsed) rehearse();
    } catch (error) {
      fail(null, error);
    }
  }, REST);
}

function chooseThreads() {
  engine.chooseThreads(storyteller.forward_time);
  send({ type: "engine", simd: engine.simd, threads: engine.threads });
}

/**
 * Browsers compile what they run in stages: a story that nobody hears, told a frame at a time until a real one takes its
 * place, has that done before it.
 */
function rehearse() {
  const until = performance.now() + REHEARSAL;
  const settings = { temperature: 1, top_p: 0.9, top_k: 0, seed: "1", length: 0 };
  storyteller.tell(JSON.stringify({ prompt: "", settings }));
  const turn = () => {
    if (rehearsed) return;
    try {
      rehearsed = JSON.parse(storyteller.advance(FRAME)).end !== null || performance.now() > until;
      if (rehearsed) storyteller.stop();
      else setTimeout(turn);
    } catch (error) {
      fail(null, error);
    }
  };
  setTimeout(turn);
}

/**
 * Tells the page in words why a question has no answer; all else goes on.
 * @param {number} id
 * @param {unknown} error
 */
function refuse(id, error) {
  const explained = explain(error);
  if (explained || error instanceof Problem) {
    send({ type: "error", id, field: null, message: (explained ?? /** @type {Problem} */ (error)).message });
  } else {
    fail(null, error);
  }
}

/**
 * Tells the page in words what went wrong. After an error that Python explains the worker goes on; after any other it
 * has to be started afresh (id null), and the console says what only a programmer can use.
 * @param {number | null} id
 * @param {unknown} error
 * @param {string} [before]  what Python's words follow
 */
function fail(id, error, before = "") {
  const explained = explain(error);
  if (explained) {
    send({ type: "error", id, field: explained.field, message: before + explained.message });
  } else if (error instanceof Problem) {
    send({ type: "error", id: null, field: null, message: error.message, way_out: error.wayOut });
  } else {
    console.error(error);
    send({ type: "error", id: null, field: null, message: "Something unforeseen went wrong in the storyteller." });
  }
}

// ---- Loading ---------------------------------------------------------------------------------------------------------

/** @param {Load} message */
async function load({ id, assets, base, source, python: start }) {
  const problem = impossible();
  if (problem) throw problem;
  /** @template {Part} T @param {T} part */
  const at = (part) => ({ ...part, url: new URL(part.url, base).href });

  const build = pickBuild();
  const run = at(assets.engines[build.name]);
  const downloaded = counter("python", run.bytes);
  // The model's bytes stay where they are until Python has them packed, piece by piece.
  let giveWay = () => {};
  const idle = new Promise((resolve) => {
    giveWay = () => resolve(undefined);
  });
  const offered = [assets.model, ...assets.offers].map((part) => part.id);
  const opening = openModel(source, { base, offered }, teller("model"), giveWay);
  opening.then(giveWay, giveWay);
  awake = startPython(assets.python.info, start, idle).then((python) => {
    explain = explainer(python);
    return python;
  });
  const isOwn = source.kind === "offer" && source.part.id === assets.model.id;
  const adapting = isOwn && assets.adapter ? download(at(assets.adapter), "The adapter", () => {}) : null;
  const starting = startEngine(build, run, at(assets.helper), downloaded.add);
  const [started, opened, python, adapter] = await Promise.all([starting, opening, awake, adapting]);

  const { Page } = python.pyimport("fabella.page");
  engine = started;
  try {
    page = Page(engine.exports, opened.file, opened.tokenizer ?? undefined);
    if (adapter) page.adapt(adapter);
  } catch (error) {
    await opened.refused();
    throw error;
  }
  const { tell, say, advance, stop, count, strange, forward_time, adapt, use_adapter, use_code } = page;
  storyteller = { tell, say, advance, stop, count, strange, forward_time, adapt, use_adapter, use_code };
  const said = JSON.parse(page.info());
  /** @type {Card} */
  const card = { ...said, id: opened.id, name: said.name || opened.name };
  const { kept, why } = opened;
  send({ type: "ready", id, model: card, kept, why, adapter: adapter && assets.adapter });
  rest();
  const complete = Promise.all([opened.loaded(card), completePython(python, at(assets.python.stdlib))]);
  fetchFurther = async () => {
    await complete;
    await addModules(python, at(assets.python.further));
  };
  await complete;
}

/** @param {Describe} message */
async function describe({ id, file, tokenizer }) {
  const python = await awake;
  const read = python.pyimport("fabella.page").describe;
  const card = read(new LocalFile(file), tokenizer ? new LocalFile(tokenizer) : undefined);
  send({ type: "described", id, card: JSON.parse(card) });
}

/**
 * Tells Python's own errors from mistakes in the program, and takes their words without the traceback.
 * @param {any} python  Pyodide
 * @returns {typeof explain}
 */
function explainer(python) {
  const sys = python.pyimport("sys");
  const { isinstance } = python.pyimport("builtins");
  const { FabellaError, PromptError } = python.pyimport("fabella.errors");
  return (error) => {
    if (!(error instanceof python.ffi.PythonError)) return null;
    const raised = sys.last_exc;
    try {
      if (!isinstance(raised, FabellaError)) return null;
      const field = isinstance(raised, PromptError) ? "prompt" : (raised.field ?? null);
      return { field, message: raised.toString() };
    } finally {
      raised.destroy();
    }
  };
}

/**
 * Adds up the bytes of one part of the download and tells the page.
 * @param {"model" | "python"} part
 * @param {number} total
 */
function counter(part, total) {
  let loaded = 0;
  const tell = teller(part);
  const counter = {
    add(/** @type {number} */ bytes) {
      loaded = Math.min(loaded + bytes, total);
      tell({ loaded, total, resumed_from: 0 });
    },
  };
  counter.add(0);
  return counter;
}

/**
 * Tells the page how much of a part is there: at once, at most once a frame, and at the end.
 * @param {"model" | "python"} part
 * @returns {(arrived: Omit<Progress, "type" | "part">) => void}
 */
function teller(part) {
  let reportedAt = -Infinity;
  return (arrived) => {
    if (performance.now() - reportedAt < FRAME && arrived.loaded !== arrived.total) return;
    reportedAt = performance.now();
    send({ type: "progress", part, ...arrived });
  };
}
