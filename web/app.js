/**
 * The page: starts the views and the worker, and says what follows from what the worker tells and the visitor does. All
 * of it is a change of the state (state.js), which the views draw.
 */

import { read } from "./address.js";
import { Bridge, Refusal } from "./bridge.js";
import { startCounting } from "./count.js";
import { element } from "./dom.js";
import { mountEmbedded } from "./embedded.js";
import { isAnother, remembered, restoreLeaf, startKeeping, versions } from "./keeping.js";
import { path } from "./leaf.js";
import { recall, remember } from "./memory.js";
import { keepForOffline, mendKept } from "./offline.js";
import { presets } from "./presets.js";
import { Problem, Spoilt, noSuchModel } from "./problem.js";
import { enter } from "./rooms.js";
import { change, current, watch } from "./state.js";
import { list } from "./store.js";
import * as telling from "./telling.js";
import { mountActions } from "./views/actions.js";
import { mountAdapter } from "./views/adapter.js";
import { mountComposer } from "./views/composer.js";
import { mountFacts } from "./views/facts.js";
import { mountLight } from "./views/light.js";
import { mountSettings } from "./views/settings.js";
import { mountStatus } from "./views/status.js";
import { mountStory } from "./views/story.js";

/** @import { AdapterCard, Assets, Card, EngineState, Progress, Source } from "./messages.js" */
/** @import { Pace } from "./pace.js" */
/** @import { State } from "./state.js" */

/** @type {Assets} */
const assets = JSON.parse(element("assets", HTMLScriptElement).text);

/** @type {Bridge} */
let bridge;

/** The file of the adapter in use, if the visitor has opened one. @type {File | null} */
let adapted = null;

/** The model for which the settings are as they are: its id. */
let settingsOf = "";

/** Done when nothing damaged is kept on this machine. */
let mended = Promise.resolve();

// ---- The worker ------------------------------------------------------------------------------------------------------

/**
 * Starts a worker, in the place of one that failed or has another model.
 * @param {Source} source
 * @param {State["adapter"]} [voice]  the adapter that the worker before had
 */
async function load(source, voice = null) {
  const { worker, python } = assets;
  const first = [worker, python.script, python.wasm, python.snapshot];
  const known = source.kind === "offer" ? source.part : null;
  const before = current().source;
  bridge?.end();
  if (before && before !== source) telling.giveUp();
  else telling.putOff();
  heard = { at: 0, loaded: 0, resumed: 0 };
  change({
    worker: "loading",
    complaint: null,
    arrived: {
      worker: { loaded: 0, total: first.reduce((sum, { bytes }) => sum + bytes, 0) },
      model: { loaded: 0, total: known?.bytes ?? 0 },
      python: { loaded: 0, total: 0 }, // which build of the engine it is, the worker finds out
    },
    source,
    ended: null,
    unkept: "",
    adapter: null,
    code: null,
    engine: null,
    counted: null,
  });
  if (known) meet(known);
  const started = new Bridge(assets, hear, (problem) => fail(/** @type {Problem} */ (problem)));
  bridge = started;
  const loaded = await started.load(source, (bytes) => {
    if (started !== bridge) return; // what still arrives for one that has failed
    const { arrived } = current();
    change({ arrived: { ...arrived, worker: { ...arrived.worker, loaded: arrived.worker.loaded + bytes } } });
  });
  performance.mark("ready"); // for tests/figures.py
  meet({ ...known, ...loaded.model });
  const own = loaded.adapter && { ...loaded.adapter, on: true, own: true };
  const file = voice && !voice.own && adapted ? adapted : undefined;
  let adapter = voice ?? own;
  if (voice && (file || !voice.on)) {
    await started.ask({ type: "adapt", file, on: voice.on }).answer.catch((error) => {
      adapter = own;
      complain(error);
    });
  }
  change({ worker: "ready", unkept: loaded.why ?? "", adapter });
  telling.send();
  const nowhere = document.activeElement === document.body && matchMedia("(pointer: fine)").matches;
  if (nowhere && current().mode === "chat") element("prompt", HTMLTextAreaElement).focus({ preventScroll: true });
  if (assets.offline) keepForOffline();
}

/** Takes over what a model says of itself. @param {Card} model */
function meet(model) {
  const { settings, mode } = current();
  const isNew = settingsOf !== model.id;
  settingsOf = model.id;
  change({
    model,
    settings: isNew ? { ...settings, ...presets(model).balanced, length: model.context } : settings,
    mode: isNew ? (model.chats ? "chat" : "story") : mode,
  });
  if (addressed) takeAddress();
}

let heard = { at: 0, loaded: 0, resumed: 0 };

/** @param {Progress | EngineState} message */
function hear(message) {
  if (message.type === "engine") {
    change({ engine: message });
    return;
  }
  const arrived = { ...current().arrived, [message.part]: message };
  change({ arrived });
  const now = performance.now();
  const loaded = Object.values(arrived).reduce((sum, part) => sum + part.loaded, 0);
  const resumed = message.part === "model" ? message.resumed_from : heard.resumed; // bytes that were here already
  if (resumed === heard.resumed && now - heard.at < 1000) return;
  const isRate = heard.at > 0 && resumed === heard.resumed && loaded > heard.loaded;
  if (isRate) change({ rate: (1000 * (loaded - heard.loaded)) / (now - heard.at) });
  heard = { at: now, loaded, resumed };
}

/**
 * The worker cannot start, or cannot go on.
 * @param {Problem} problem
 */
function fail(problem) {
  const { message, wayOut } = problem;
  const { source } = current();
  telling.giveUp();
  if (source && problem instanceof Spoilt) {
    change({ codeProblem: { message, line: null } });
    restart().catch(complain);
    return;
  }
  if (wayOut === "reload" && assets.offline) mended = mendKept();
  change({ worker: "failed", complaint: { message, field: null, wayOut } });
}

async function again() {
  if (current().complaint?.wayOut === "reload") {
    await mended;
    location.reload();
    return;
  }
  const { source } = current();
  load(source && source.kind !== "kept" ? source : ownSource());
  element("tell", HTMLButtonElement).focus();
}

// ---- What the visitor does beside writing ----------------------------------------------------------------------------

/** @param {Pace} pace */
function setPace(pace) {
  remember("pace", pace);
  telling.setPace(pace);
}

/** @param {"story" | "chat"} mode */
function setMode(mode) {
  const { request, mode: before, leaf, aside } = current();
  if (request || mode === before) return;
  change({ mode, leaf: aside, aside: leaf, ended: null, complaint: null });
}

/** A part of the page that cannot be shown; all else goes on. @param {Error} error */
const complain = ({ message }) => change({ complaint: { message, field: null, wayOut: "again" } });

const openChat = () => enter("chat", assets, telling).catch(complain);
const openCode = () => enter("code", assets, { ...telling, useCode, untouched }).catch(complain);
const openShare = () =>
  enter("share", assets, { ...telling, setMode, question, openCode, untouched, settled, anew }).catch(complain);
const openProof = () => enter("proof", assets, { assets, question, untouched }).catch(complain);
const openShelf = () => enter("shelf", assets, { ...telling, assets, load, describe, adapt, versions }).catch(complain);

const openLook = () => enter("look", assets, { ...telling, question, hush, own: assets.model.id }).catch(complain);

/** @type {Bridge["ask"]} */
const question = (...asked) => bridge.ask(...asked);

/** @type {Bridge["stop"]} */
const hush = (id) => bridge.stop(id);

/**
 * What a model file says of itself; of one that nobody can ask now, its name and size.
 * @param {File} file
 * @param {File} [tokenizer]
 * @returns {Promise<Card & { adapter?: AdapterCard }>}
 */
async function describe(file, tokenizer) {
  const worker = await untouched();
  const nothing = /** @type {Card} */ ({ name: file.name, bytes: file.size });
  if (worker === "failed") return nothing;
  const { card } = await bridge.ask({ type: "describe", file, tokenizer }).answer;
  return { ...card, name: card.name || file.name };
}

/** Waits while the storyteller wakes. @returns {Promise<"ready" | "failed">} */
async function settled() {
  let unwatch = () => {};
  const worker = await new Promise((resolve) => {
    unwatch = watch(
      ({ worker }) => [worker],
      (worker) => worker !== "loading" && resolve(worker),
    );
  });
  unwatch();
  return worker;
}

/**
 * Has the visitor's code choose the tokens from the next one on.
 * @param {string} source
 * @returns {Promise<boolean>} whether it does; if not, what did before goes on
 */
async function useCode(source) {
  if ((await settled()) === "failed") return false;
  try {
    const { printed, problem } = await bridge.ask({ type: "code", source }).answer;
    if (printed) change({ printed: { text: printed } });
    change({ codeProblem: problem, ...(!problem && { code: source }) });
    if (problem && current().code === null) await untouched(); // what it has done before it went wrong
    return !problem;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    change({ codeProblem: { message: error.message, line: null } });
    return false;
  }
}

/**
 * Waits for a worker in which no code of the visitor's has run: whatever such code has left behind ends with its worker.
 * The sampler chooses there, and there alone files are read and the self-test is made.
 */
async function untouched() {
  if (bridge?.isTouched) restart().catch(complain);
  return settled();
}

/** As `untouched`, but that it is another worker in any case, which has read nothing yet. */
async function anew() {
  restart().catch(complain);
  return settled();
}

/** Starts the worker anew, with what it had but for the visitor's code. */
async function restart() {
  const { source, adapter } = current();
  if (source) await load(source, adapter);
}

/** Has the model in use speak through an adapter; rejects with a Refusal if that is for another. @param {File} file */
async function adapt(file) {
  await untouched();
  const { adapter } = await bridge.ask({ type: "adapt", file, on: true }).answer;
  change({ adapter: { ...adapter, name: adapter.name || file.name, on: true, own: false } });
  adapted = file;
}

/** @param {boolean} on */
async function useAdapter(on) {
  await untouched();
  await bridge.ask({ type: "adapt", on }).answer;
  const { adapter } = current();
  if (adapter) change({ adapter: { ...adapter, on } });
}

async function editLast() {
  const asked = path(/** @type {any} */ (current().leaf ?? { picked: {} })).findLast(({ role }) => role === "user");
  if (asked) (await openChat())?.edit(asked.id);
}

addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (/** @type {DragEvent} */ event) => {
  const files = [...(event.dataTransfer?.files ?? [])];
  if (files.length === 0) return;
  event.preventDefault();
  (await openShelf())?.take(files);
});

document.addEventListener("keydown", (event) => {
  const { key } = event;
  if (document.querySelector("dialog[open]")) return;
  if (key === "Escape" && current().request) telling.stop();
  const [typed] = event.composedPath(); // the code's editor hides what is in it
  const typing =
    typed instanceof HTMLElement && typed.closest("textarea, input, button, summary, a, [contenteditable]");
  if (key === " " && current().request && current().pace === "a word" && !typing) {
    event.preventDefault();
    telling.nextWord();
  }
});

// ---- The start -------------------------------------------------------------------------------------------------------

/** @returns {Source} */
const ownSource = () => ({ kind: "offer", part: assets.model });

/**
 * Where a model is that an address names, by the beginning of its hash, its name, or its file's; or that this tab had.
 * @param {string} name  "" if the address names none
 * @param {string} chosen  the id of the tab's, "" for the page's own
 * @returns {Promise<Source | null>} null: nowhere
 */
async function sourceOf(name, chosen) {
  if (!name && !chosen) return ownSource();
  const begins = (/** @type {string} */ text) => text.toLowerCase().startsWith((name || chosen).toLowerCase());
  const offered = [assets.model, ...assets.offers].find(({ id, name, file }) => [id, name, file].some(begins));
  if (offered) return { kind: "offer", part: offered };
  if (begins(chosen)) return { kind: "kept", id: chosen };
  const kept = (await list()).find(({ id, name }) => [id, name].some(begins));
  return kept ? { kind: "kept", id: kept.id } : null;
}

/** Whether the address is to be looked at once the model is known. */
let addressed = false;

/** Puts what the address says into the fields; a whole story in it is told at once, unless it stands in another's page. */
function takeAddress() {
  const { prompt, seed, settings, mode, compact, shared } = read(location.hash);
  const { model } = current();
  addressed = !model;
  if (!model) return;
  if (shared && !compact) {
    const { hash } = location;
    openShare().then(async (room) => {
      addressed = (await room?.follow(hash)) === false; // it needs another model, which the visitor may open
    });
    return;
  }
  if (mode === "chat" && !model.chats) complain(new Problem("This model tells stories: it does not converse."));
  else if (mode) setMode(mode);
  if (!isAnother()) return;
  const usual = { ...presets(model).balanced, length: model.context };
  change({ prompt: prompt ?? "", settings: { ...current().settings, ...usual, ...settings, seed } });
  if (!seed || compact || current().mode !== "story") return;
  telling.tell();
  change({ settings: { ...current().settings, seed: "" } }); // the next story is another
}

/** The address has become another. */
async function follow() {
  await untouched(); // it tells what the sampler chooses, or code of its own
  const { model, shared } = read(location.hash);
  const source = model ? await sourceOf(model, current().model?.id ?? "") : null;
  if (model && !source && !shared) {
    complain(noSuchModel(model, assets.model.name));
    return;
  }
  const id = source?.kind === "offer" ? source.part.id : source?.kind === "kept" ? source.id : "";
  if (source && id !== current().model?.id) {
    change({ model: null });
    load(source);
  }
  takeAddress();
}

async function start() {
  const address = read(location.hash);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  change({ pace: /** @type {Pace} */ (recall("pace") || (calm ? "at once" : "reading")) });
  telling.begin({ bridge: () => bridge, load: again });
  const { leaf, model = "", chosen = "", ...state } = (!address.compact && remembered()) || {};
  settingsOf = model;
  change(state);
  const found = await sourceOf(address.model, chosen);
  // A tab whose page has another model by now; or a story of one that rooms/share.js will ask for.
  const source = found ?? (leaf || address.shared ? ownSource() : null);
  if (source) load(source);
  else fail(noSuchModel(address.model, assets.model.name));
  if (leaf) await restoreLeaf(leaf);
  if (source) takeAddress();
  if (!address.compact) startKeeping(assets.model.id);
  addEventListener("hashchange", follow);
}

element("asleep", HTMLElement).remove(); // it speaks of a page whose script does not run
mountLight();
mountSettings({ setPace, setMode });
mountEmbedded();
mountComposer({ tell: telling.tell, stop: telling.stop, editLast });
mountStatus({ again });
mountStory({ nextWord: telling.nextWord });
mountActions({ ...telling, share: async () => (await openShare())?.open() });
mountAdapter({ useAdapter });
element("code-button", HTMLButtonElement).addEventListener("click", async () => (await openCode())?.open());
element("look", HTMLButtonElement).addEventListener("click", async () => (await openLook())?.toggle());
mountFacts({ openShelf: async () => (await openShelf())?.open() });
watch(
  ({ mode }) => [mode],
  (mode) => {
    if (mode === "chat") openChat();
  },
);
element("proof", HTMLButtonElement).addEventListener("click", async () => (await openProof())?.test());
startCounting(() => bridge);
if (assets.worker) start();
else fail(new Problem("This is the page's source, not the page: run “python build.py serve”."));
