/**
 * The page: starts the views and the worker, and says what follows from what the worker tells and the visitor does. All
 * of it is a change of the state (state.js), which the views draw.
 */

import { read } from "./address.js";
import { Bridge } from "./bridge.js";
import { startCounting } from "./count.js";
import { element } from "./dom.js";
import { mountEmbedded } from "./embedded.js";
import { isAnother, remembered, restoreLeaf, startKeeping } from "./keeping.js";
import { path } from "./leaf.js";
import { recall, remember } from "./memory.js";
import { keepForOffline, mendKept } from "./offline.js";
import { presets } from "./presets.js";
import { Problem, noSuchModel } from "./problem.js";
import { enter } from "./rooms.js";
import { change, current, watch } from "./state.js";
import * as telling from "./telling.js";
import { mountActions } from "./views/actions.js";
import { mountComposer } from "./views/composer.js";
import { mountFacts } from "./views/facts.js";
import { mountLight } from "./views/light.js";
import { mountSettings } from "./views/settings.js";
import { mountStatus } from "./views/status.js";
import { mountStory } from "./views/story.js";

/** @import { Assets, Card, EngineState, ModelPart, Progress, Source } from "./messages.js" */
/** @import { Pace } from "./pace.js" */

/** @type {Assets} */
const assets = JSON.parse(element("assets", HTMLScriptElement).text);

/** @type {Bridge} */
let bridge;

/** The model for which the settings are as they are: its id. */
let settingsOf = "";

/** Done when nothing damaged is kept on this machine. */
let mended = Promise.resolve();

// ---- The worker ------------------------------------------------------------------------------------------------------

/** Starts a worker, in the place of one that failed or has another model. @param {Source} source */
async function load(source) {
  const { worker, python } = assets;
  const first = [worker, python.script, python.wasm, python.snapshot];
  const known = source.kind === "offer" ? source.part : null;
  bridge?.end();
  telling.putOff();
  change({
    worker: "loading",
    complaint: null,
    arrived: {
      worker: { loaded: 0, total: first.reduce((sum, { bytes }) => sum + bytes, 0) },
      model: { loaded: 0, total: known?.bytes ?? 0 },
      python: { loaded: 0, total: 0 }, // which build of the engine it is, the worker finds out
    },
    source,
    unkept: "",
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
  meet(loaded.model);
  change({ worker: "ready", unkept: loaded.why ?? "" });
  telling.send();
  if (assets.offline) keepForOffline();
}

/** Takes over what a model says of itself. @param {Card} model */
function meet(model) {
  const { settings, mode } = current();
  const isNew = settingsOf !== model.id;
  settingsOf = model.id;
  change({
    model,
    settings: isNew ? { ...settings, ...presets(model).balanced } : settings,
    mode: isNew ? (model.chats ? "chat" : "story") : mode,
  });
}

let heard = { at: 0, loaded: 0 };

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
  if (now - heard.at < 1000) return;
  if (heard.at && loaded > heard.loaded) change({ rate: (1000 * (loaded - heard.loaded)) / (now - heard.at) });
  heard = { at: now, loaded };
}

/**
 * The worker cannot start, or cannot go on.
 * @param {Problem} problem
 */
function fail({ message, wayOut }) {
  telling.giveUp();
  if (wayOut === "reload" && assets.offline) mended = mendKept();
  change({ worker: "failed", complaint: { message, field: null, wayOut } });
}

async function again() {
  if (current().complaint?.wayOut === "reload") {
    await mended;
    location.reload();
    return;
  }
  load(current().source ?? { kind: "offer", part: assets.models[0] });
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
  if (current().request) return;
  change({ mode, leaf: current().leaf?.kind === mode ? current().leaf : null, ended: null, complaint: null });
}

const openChat = () => enter("chat", assets, { ...telling, setMode }).catch(fail);
const openShelf = () => enter("shelf", assets, { ...telling, assets, load, describe }).catch(fail);

/** What a model file says of itself. @param {File} file @param {File} [tokenizer] @returns {Promise<Card>} */
const describe = async (file, tokenizer) => (await bridge.ask({ type: "describe", file, tokenizer }).answer).card;

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
  const { target, key } = event;
  if (document.querySelector("dialog[open]")) return;
  if (key === "Escape" && current().request) telling.stop();
  const typing =
    target instanceof HTMLElement && target.closest("textarea, input, button, summary, a, [contenteditable]");
  if (key === " " && current().request && current().pace === "a word" && !typing) {
    event.preventDefault();
    telling.nextWord();
  }
});

// ---- The start -------------------------------------------------------------------------------------------------------

/**
 * Where the model is that an address names: by the beginning of its hash, its name, or its file's.
 * @param {string} name  "": the page's own
 * @returns {Source | null} null: nowhere
 */
function sourceOf(name) {
  const [first] = assets.models;
  const isIt = (/** @type {ModelPart} */ { id, name: itsName, file }) =>
    id.startsWith(name) || [itsName, file, file.replace(/\.gguf$/, "")].includes(name);
  const offered = name ? assets.models.find(isIt) : first;
  if (offered) return { kind: "offer", part: offered };
  return /^[0-9a-f]{64}$/.test(name) ? { kind: "kept", id: name } : null;
}

/** Puts what the address says into the fields; a whole story in it is told at once, unless it stands in another's page. */
function takeAddress() {
  const { prompt, seed, settings, mode, compact } = read(location.hash);
  if (mode && current().model?.chats) setMode(mode);
  if (!isAnother()) return;
  change({ prompt: prompt ?? "", settings: { ...current().settings, ...settings, seed } });
  if (!seed || compact || current().mode !== "story") return;
  telling.tell();
  change({ settings: { ...current().settings, seed: "" } }); // the next story is another
}

async function start() {
  const address = read(location.hash);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const pace = /** @type {Pace} */ (recall("pace") || (calm ? "at once" : "reading"));
  change({ pace });
  telling.begin({ bridge: () => bridge, load: again });
  const { leaf, model = "", chosen = "", ...state } = remembered() ?? {};
  settingsOf = model;
  change(state);
  const source = sourceOf(address.model || chosen);
  if (source) load(source);
  else fail(noSuchModel(address.model, assets.models[0].name));
  if (leaf) await restoreLeaf(leaf);
  takeAddress();
  startKeeping(assets.models[0].id);
  addEventListener("hashchange", () => {
    const { model } = read(location.hash);
    const source = sourceOf(model);
    if (!source) fail(noSuchModel(model, assets.models[0].name));
    else if (model && source.kind === "offer" && source.part.id !== current().model?.id) load(source);
    takeAddress();
  });
}

element("asleep", HTMLElement).remove(); // it speaks of a page whose script does not run
mountLight();
mountSettings({ setPace, setMode });
mountEmbedded();
mountComposer({ tell: telling.tell, stop: telling.stop, editLast });
mountStatus({ again });
mountStory({ nextWord: telling.nextWord });
mountActions(telling);
mountFacts({ openShelf: async () => (await openShelf())?.open() });
watch(
  ({ mode }) => [mode],
  (mode) => {
    if (mode === "chat") openChat();
  },
);
startCounting(() => bridge);
if (assets.worker) start();
else fail(new Problem("This is the page's source, not the page: run “python build.py serve”."));
