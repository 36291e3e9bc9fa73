/**
 * What the visitor may ask of the model: a story, an answer, the same once more, more of it. Each becomes a question to
 * the worker, and what comes back a turn of the leaf, at the pace that the reader wants.
 */

import { Refusal } from "./bridge.js";
import { add, before, branches, last, messages, newLeaf, path, pick, set } from "./leaf.js";
import { Pacer } from "./pace.js";
import { change, current } from "./state.js";

/** @import { Bridge } from "./bridge.js" */
/** @import { Leaf, Turn } from "./leaf.js" */
/** @import { Done, Settings, Step, Steps } from "./messages.js" */
/** @import { Request } from "./state.js" */

/** Why a text may have ended without being whole: then the model can go on with it. */
const UNFINISHED = { story: ["length", "stopped", "loop"], chat: ["length", "stopped", "loop", "context"] };

let requests = 0;
const pacer = new Pacer(show);

/** @type {{ bridge: () => Bridge, load: () => void }} */
let worker;

/** @param {typeof worker} its  ways to it */
export function begin(its) {
  worker = its;
}

/** The settings as the visitor has them, with a seed. @returns {Settings} */
function chosen() {
  const { settings } = current();
  return {
    ...settings,
    loops: true,
    seed: settings.seed || String(crypto.getRandomValues(new Uint32Array(1))[0] || 1),
  };
}

const own = () => /** @type {{ id: string, name: string }} */ (current().model);

/** Whether the page's model wrote this leaf, and may go on with it. @param {Leaf | null} leaf */
export const isOurs = (leaf) => leaf !== null && (leaf.model.id === current().model?.id || !current().model?.id);

/** What the box asks for: a story, or an answer. */
export function tell() {
  const { request, mode, prompt, leaf } = current();
  if (request) return;
  if (mode === "chat") {
    say(
      leaf?.kind === "chat" && isOurs(leaf) ? leaf : null,
      last(leaf?.kind === "chat" ? leaf : null)?.id ?? null,
      prompt,
    );
    return;
  }
  const settings = chosen();
  const first = leaf?.kind === "story" && isOurs(leaf) ? path(leaf)[0] : undefined;
  const same = first?.text === prompt ? first.id : null; // another telling of what is there
  const begun = same === null || !leaf ? add(newLeaf("story", own()), null, "user", "") : leaf;
  ask({ type: "tell", prompt, settings }, () => add(begun, same ?? 0, "assistant", "", settings), {
    reads: same === null,
  });
}

/**
 * @param {Leaf | null} leaf  null: a new conversation
 * @param {number | null} parent  the turn that it follows
 * @param {string} text
 */
function say(leaf, parent, text) {
  if (!text.trim()) return;
  const begun = leaf ?? newLeaf("chat", own(), current().system);
  answer(add(begun, leaf ? parent : null, "user", text));
  change({ prompt: "" });
}

/** Has the last turn of a conversation answered. @param {Leaf} leaf */
function answer(leaf) {
  const settings = chosen();
  const turns = path(leaf);
  const asking = turns[turns.length - 1].id;
  ask({ type: "say", messages: messages(leaf.system, turns), settings }, () =>
    add(leaf, asking, "assistant", "", settings),
  );
}

/** Once more, another way. @param {Turn} turn  the model's */
export function again(turn) {
  const { leaf, request } = current();
  if (request || !leaf) return;
  const asked = before(leaf, turn.id);
  if (leaf.kind === "chat") {
    answer(pick({ ...leaf, picked: withoutAfter(leaf, asked[asked.length - 1].id) }, asked[asked.length - 1].id));
    return;
  }
  const settings = chosen();
  const prompt = asked[0].text;
  ask({ type: "tell", prompt, settings }, () => add(leaf, turn.parent, "assistant", "", settings));
}

/** @param {Leaf} leaf @param {number} id */
function withoutAfter(leaf, id) {
  const { [id]: _, ...picked } = leaf.picked;
  return picked;
}

/**
 * What the visitor said, said another way; what came after stays, as another branch.
 * @param {Turn} turn  the visitor's
 * @param {string} text
 */
export function edit(turn, text) {
  const { leaf, request } = current();
  if (request || !leaf) return;
  const { prompt } = current();
  say(leaf, turn.parent, text);
  change({ prompt });
}

/** Whether the model can go on with a turn. @param {Leaf} leaf @param {Turn} turn */
export const canGoOn = ({ kind }, { role, reason, text }) =>
  role === "assistant" && UNFINISHED[kind].includes(reason ?? "stopped") && text !== "";

/** @param {Turn} turn  the model's, which is not finished */
export function goOn(turn) {
  const { leaf, request, settings } = current();
  if (request || !leaf || !turn.settings) return;
  // A character that was cut off comes whole.
  const whole = turn.reason === "length" ? set(leaf, turn.id, { text: turn.text.replace(/\uFFFD+$/, "") }) : leaf;
  const place = () => whole;
  if (leaf.kind === "chat") {
    const said = messages(leaf.system, [...before(leaf, turn.id), turn]);
    ask({ type: "say", messages: said, settings: { ...turn.settings, length: settings.length } }, place, {
      turn: turn.id,
    });
  } else {
    // As if it had not ended there: the same settings, and further.
    const further = settings.length > turn.settings.length ? settings.length : 0;
    const length = turn.reason === "length" ? further : turn.settings.length;
    const [{ text: prompt }] = before(leaf, turn.id);
    ask({ type: "tell", prompt, settings: { ...turn.settings, length }, told: turn.tokens }, place, { turn: turn.id });
  }
}

/** Shows the next word, if the pace is so. */
export const nextWord = () => pacer.next();

/** @param {import("./pace.js").Pace} pace */
export function setPace(pace) {
  change({ pace });
  if (current().request) pacer.pace = pace;
}

/** @param {Leaf} leaf @param {number} id  a turn of it that shall be seen */
export function turnTo(leaf, id) {
  if (current().request) return;
  change({ leaf: pick(leaf, id), ended: null });
}

export { branches, last, path };

// ---- The question ----------------------------------------------------------------------------------------------------

/**
 * @param {Request["message"]} message
 * @param {Request["place"]} place
 * @param {{ turn?: number | null, reads?: boolean }} [how]  turn: that is gone on with
 */
function ask(message, place, { turn = null, reads = false } = {}) {
  const { leaf, worker: state } = current();
  /** @type {Request} */
  const request = {
    id: ++requests,
    message,
    place,
    before: leaf,
    turn,
    reads,
    question: null,
    done: null,
    rate: 0,
    stopped: false,
  };
  pacer.begin(current().pace);
  change({ request, ended: null, complaint: null });
  if (message.type === "say" && turn === null) makeRoom();
  if (state === "ready") send();
  else if (state === "failed") worker.load();
}

/** Puts the request's turn into the leaf. @returns {{ leaf: Leaf, turn: number }} */
function makeRoom() {
  const { request, leaf } = current();
  if (!request) throw new Error("there is no request");
  if (request.turn !== null) return { leaf: /** @type {Leaf} */ (leaf), turn: request.turn };
  const placed = request.place();
  const turn = placed.turns.length - 1;
  change({ leaf: placed, request: { ...request, turn } });
  return { leaf: placed, turn };
}

/** Sends the request, now that the worker is ready. */
export async function send() {
  const { request } = current();
  if (!request) return;
  const asked = worker.bridge().ask(request.message, (steps) => hear(request.id, steps));
  change({ request: { ...request, question: asked.id } });
  try {
    const done = await asked.answer;
    const now = current().request;
    if (now?.id !== request.id) return;
    change({ request: { ...now, done } });
    if (now.stopped) finish(request.id, done);
    else pacer.end(() => finish(request.id, done));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    pacer.drop();
    takeBack();
    change({ request: null, complaint: { message: error.message, field: error.field, wayOut: "again" } });
  }
}

/** What was asked for will not come: the leaf is as before, and what the visitor wrote is in its box. */
function takeBack() {
  const { request } = current();
  if (request?.message.type !== "say" || request.turn === null) return;
  const said = request.message.messages.at(-1);
  const unsaid = said?.role === "user" && !current().prompt ? { prompt: said.content } : {};
  change({ leaf: request.before, ...unsaid });
}

export function stop() {
  const { request } = current();
  if (!request) return;
  pacer.drop();
  if (request.question === null) {
    takeBack();
    change({ request: null }); // it was still waiting
    return;
  }
  change({ request: { ...request, stopped: true } });
  if (request.done)
    finish(request.id, request.done); // the worker is ahead of the reader
  else worker.bridge().stop(request.question);
}

/** Another worker starts: what was asked of the one before and has not begun is asked of this one. */
export function putOff() {
  const { request } = current();
  if (request?.turn != null && request.question !== null) giveUp();
  else if (request) change({ request: { ...request, question: null } });
}

/** The worker has failed: nothing more comes. */
export function giveUp() {
  pacer.drop();
  if (!current().request) return;
  const { leaf, request } = current();
  if (leaf && request?.turn != null && leaf.turns[request.turn].text) {
    change({ leaf: set(leaf, request.turn, { reason: "stopped" }) });
  } else takeBack();
  change({ request: null });
}

/**
 * @param {number} id  the request's
 * @param {Steps} message
 */
function hear(id, { steps, tokens_per_second: rate }) {
  const { request } = current();
  if (request?.id !== id || request.stopped) return;
  change({ request: { ...request, rate } });
  pacer.push(steps);
}

/** @param {Step[]} steps */
function show(steps) {
  const { request } = current();
  if (!request) return;
  const { leaf, turn: id } = makeRoom();
  const given = steps.filter((step) => step.from_prompt); // the prompt comes first
  const told = steps.slice(given.length);
  const { text: before, tokens, dropped, parent } = leaf.turns[id];
  if (told.length > 0 && performance.getEntriesByName("first-token").length === 0) performance.mark("first-token");
  const prompt = request.reads && parent !== null ? leaf.turns[parent] : null;
  const read = prompt && given.length > 0 ? set(leaf, prompt.id, { text: prompt.text + text(given) }) : leaf;
  const shown = {
    text: before + text(told),
    tokens: [...tokens, ...told.map(({ token }) => token)],
    dropped: Math.max(dropped, ...steps.map(({ dropped }) => dropped ?? 0)),
    rate: request.rate,
    reason: null,
  };
  change({ leaf: set(read, id, shown) });
}

/** @param {Step[]} steps */
const text = (steps) => steps.map((step) => step.text).join("");

/**
 * @param {number} id  the request's
 * @param {Done} done
 */
function finish(id, { reason, seconds, tokens_per_second: rate }) {
  const { request } = current();
  if (request?.id !== id) return;
  const ended = request.stopped ? "stopped" : reason; // it may end while Stop is on its way; its end is not shown then
  const { leaf } = current();
  const { turn } = request;
  if (!leaf || turn === null) {
    change({ request: null, ended }); // stopped before there was anything
    return;
  }
  change({
    request: null,
    ended,
    leaf: set(leaf, turn, { reason: ended, seconds: leaf.turns[turn].seconds + seconds, rate }),
  });
}
