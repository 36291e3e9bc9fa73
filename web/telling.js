/**
 * What the visitor may ask of the model: a story, an answer, the same once more, more of it. Each becomes a question to
 * the worker, and what comes back a turn of the leaf, at the pace that the reader wants.
 */

import { Refusal } from "./bridge.js";
import { add, before, forced, last, messages, newLeaf, path, pick, set } from "./leaf.js";
import { Pacer } from "./pace.js";
import { change, current } from "./state.js";

/** @import { Bridge } from "./bridge.js" */
/** @import { Leaf, Turn } from "./leaf.js" */
/** @import { Done, Settings, Step, Steps } from "./messages.js" */
/** @import { Pace } from "./pace.js" */
/** @import { Request } from "./state.js" */

/** Why a text may have ended without being whole: then the model can go on with it. */
const UNFINISHED = {
  story: ["length", "stopped", "loop", "code"],
  chat: ["length", "stopped", "loop", "context", "code"],
};

let requests = 0;
const pacer = new Pacer(show);

/** @type {{ bridge: () => Bridge, load: () => void }} */
let worker;

/** @param {typeof worker} its  ways to it */
export function begin(its) {
  worker = its;
}

/** Hears what comes, before the reader sees it, and how each token was chosen. @type {Onlooker | null} */
let onlooker = null;

/**
 * @callback Onlooker
 * @param {Request} request
 * @param {Step[]} steps
 */
/** From now on somebody looks on, or with null nobody. @param {Onlooker | null} hear */
export function lookOn(hear) {
  onlooker = hear;
}

export const newSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0] || 1);

/** The settings as the visitor has them, with a seed. @returns {Settings} */
function chosen() {
  const { settings } = current();
  return { ...settings, seed: settings.seed || newSeed() };
}

/** The page's model, which is known once it has answered. */
const own = () => /** @type {{ id: string, name: string }} */ (current().model);

/** Whether the page's model wrote this leaf, and may go on with it. @param {Leaf | null} leaf @returns {leaf is Leaf} */
export const isOurs = (leaf) => leaf !== null && leaf.model.id === current().model?.id;

// ---- What can be asked for -------------------------------------------------------------------------------------------

/** What the box asks for: a story, or an answer. @param {Turn["choices"]} [choices]  to take in the story */
export function tell(choices) {
  const { request, mode, prompt, leaf } = current();
  if (request) return;
  const ours = isOurs(leaf) && leaf.kind === mode ? leaf : null;
  if (mode === "chat") {
    if (say(ours, last(ours)?.id ?? null, prompt)) change({ prompt: "" });
    return;
  }
  const settings = chosen();
  const first = ours ? path(ours)[0] : undefined;
  const same = ours && first?.text === prompt; // another telling of what is there
  ask(
    { type: "tell", prompt, settings, forced: forced(choices) },
    () => {
      const begun = same ? ours : add(newLeaf("story", own()), null, "user", "");
      const leaf = add(begun, same ? first.id : 0, "assistant", "", settings);
      return choices ? set(leaf, leaf.turns.length - 1, { choices }) : leaf;
    },
    { reads: !same },
  );
}

/**
 * @param {Leaf | null} leaf  null: a new conversation
 * @param {number | null} parent  the turn that it follows
 * @param {string} text
 * @returns {boolean} whether it is asked
 */
function say(leaf, parent, text) {
  if (!text.trim() || current().request) return false;
  const settings = chosen();
  const system = leaf?.system ?? current().system;
  const turns = leaf && parent !== null ? [...before(leaf, parent), leaf.turns[parent]] : [];
  const said = messages(system, [...turns, { role: /** @type {const} */ ("user"), text }]);
  ask({ type: "say", messages: said, settings }, () => {
    const asked = add(leaf ?? newLeaf("chat", own(), system), parent, "user", text);
    return add(asked, asked.turns.length - 1, "assistant", "", settings);
  });
  return true;
}

/** Once more, another way. @param {Turn} turn  the model's */
export function again(turn) {
  const { leaf, request } = current();
  if (request || !isOurs(leaf)) return;
  const settings = chosen();
  const asked = before(leaf, turn.id);
  const place = () => add(leaf, turn.parent, "assistant", "", settings);
  if (leaf.kind === "chat") ask({ type: "say", messages: messages(leaf.system, asked), settings }, place);
  else ask({ type: "tell", prompt: asked[0].text, settings }, place);
}

/**
 * What the visitor said, said another way; what came after stays, as another branch.
 * @param {Turn} turn  the visitor's
 * @param {string} text
 * @returns {boolean} whether it is asked
 */
export function edit(turn, text) {
  const { leaf } = current();
  return isOurs(leaf) && say(leaf, turn.parent, text);
}

/** Whether the model can go on with a turn. @param {Leaf} leaf @param {Turn} turn */
export const canGoOn = ({ kind }, { role, reason, text }) =>
  role === "assistant" && UNFINISHED[kind].includes(reason ?? "stopped") && text !== "";

/** @param {Turn} turn  the model's, which is not finished */
export function goOn(turn) {
  const { leaf, request, settings: now, model } = current();
  if (request || !isOurs(leaf) || !turn.settings) return;
  const { id, text, tokens, reason, choices } = turn;
  // A story goes on as if it had not ended there: with the same settings, and further.
  const further = now.length > turn.settings.length ? now.length : (model?.context ?? 0);
  const length = leaf.kind === "chat" ? now.length : reason === "length" ? further : turn.settings.length;
  const settings = { ...turn.settings, length };
  // A character that was cut off comes whole.
  const whole = leaf.kind === "story" && reason === "length" ? text.replace(/\uFFFD+$/, "") : text;
  const asked = before(leaf, id);
  const message =
    leaf.kind === "chat"
      ? { type: /** @type {const} */ ("say"), messages: messages(leaf.system, [...asked, turn]), settings }
      : {
          type: /** @type {const} */ ("tell"),
          prompt: asked[0].text,
          settings,
          told: tokens,
          forced: forced(choices, tokens.length),
        };
  ask(message, () => set(leaf, id, { text: whole, settings }), { turn: id });
}

/** Shows the next word, if the pace is so. */
export const nextWord = () => pacer.next();

/** @param {Pace} pace */
export function setPace(pace) {
  change({ pace });
  if (current().request) pacer.pace = pace;
}

/** @param {Leaf} leaf @param {number} id  a turn of it that shall be seen */
export function turnTo(leaf, id) {
  if (!current().request) change({ leaf: pick(leaf, id), ended: null });
}

// ---- The question ----------------------------------------------------------------------------------------------------

/**
 * @param {Request["message"]} message
 * @param {Request["place"]} place
 * @param {{ turn?: number | null, reads?: boolean }} [how]  turn: that is gone on with; reads: the prompt is shown
 */
export function ask(message, place, { turn = null, reads = false } = {}) {
  const { leaf, worker: state, model } = current();
  const begun = { id: ++requests, message, place, before: leaf, turn, home: null, reads };
  // Whoever looks on decides about the first word, too, unless that is what they have just done.
  const { forced = [], typed = "" } = message;
  pacer.begin(current().pace, onlooker && forced.length === 0 && !typed ? 0 : 1);
  change({
    request: { ...begun, question: null, done: null, rate: 0, stopped: false },
    ended: null,
    complaint: null,
  });
  if (message.type === "say" && model) makeRoom(); // what the visitor says is there at once
  if (state === "ready") send();
  else if (state === "failed") worker.load();
}

/**
 * The request's leaf, with room for its text.
 * @param {Request} request
 * @returns {{ leaf: Leaf, turn: number } | null} null if another leaf has taken its place
 */
function room(request) {
  const { leaf } = current();
  if (request.home === null) return makeRoom();
  return leaf?.id === request.home && request.turn !== null ? { leaf, turn: request.turn } : null;
}

/** @returns {{ leaf: Leaf, turn: number } | null} */
function makeRoom() {
  const { request } = current();
  if (!request) return null;
  const leaf = request.place();
  const turn = request.turn ?? leaf.turns.length - 1;
  change({ leaf, request: { ...request, turn, home: leaf.id } });
  return { leaf, turn };
}

/** Sends the request, now that the worker is ready. */
export async function send() {
  const { request } = current();
  if (!request) return;
  const message = {
    ...request.message,
    settings: { ...request.message.settings, loops: true, ...(onlooker && { look: true }) },
  };
  const asked = worker.bridge().ask(message, (steps) => hear(request.id, steps));
  change({ request: { ...request, question: asked.id } });
  try {
    const done = await asked.answer;
    const now = current().request;
    if (now?.id !== request.id) return;
    change({ request: { ...now, done } });
    if (done.reason === "code") {
      change({ codeProblem: done.problem });
      pacer.pace = "at once"; // the text is read up to where the code went wrong
    }
    if (now.stopped) finish(request.id, done);
    else pacer.end(() => finish(request.id, done));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (current().request?.id === request.id) takeBack(error.message, error.field);
  }
}

/**
 * What was asked for does not come: the leaf is as before, and what the visitor wrote is in its box.
 * @param {string} [message]  why
 * @param {string | null} [field]
 */
function takeBack(message = "", field = null) {
  const { request, leaf, prompt } = current();
  if (!request) return;
  pacer.drop();
  const said = request.message.type === "say" ? request.message.messages.at(-1) : undefined;
  change({
    request: null,
    ...(request.home !== null && leaf?.id === request.home && { leaf: request.before }),
    ...(said?.role === "user" && !prompt && { prompt: said.content }),
    ...(message && { complaint: { message, field, wayOut: /** @type {const} */ ("again") } }),
  });
}

export function stop() {
  const { request } = current();
  if (!request) return;
  pacer.drop();
  if (request.question === null) {
    takeBack(); // it was still waiting
    return;
  }
  change({ request: { ...request, stopped: true } });
  if (request.done)
    finish(request.id, request.done); // the worker is ahead of the reader
  else worker.bridge().stop(request.question);
}

/** Nothing more comes, or is wanted: what was told of it stays. */
export function giveUp() {
  const { request } = current();
  if (!request) return;
  const placed = request.home === null ? null : room(request);
  if (!placed || !placed.leaf.turns[placed.turn].text) {
    takeBack();
    return;
  }
  pacer.drop();
  change({ request: null, ended: "stopped", leaf: set(placed.leaf, placed.turn, { reason: "stopped" }) });
}

/** The visitor turns to something else. */
export function abandon() {
  const { request } = current();
  if (request?.question != null && !request.done) worker.bridge().stop(request.question);
  giveUp();
}

/** The worker starts anew: what was not begun is asked of it, what was begun is over. */
export function putOff() {
  const { request } = current();
  if (request?.question === null) return;
  giveUp();
}

/**
 * @param {number} id  the request's
 * @param {Steps} message
 */
function hear(id, { steps, tokens_per_second: rate, printed }) {
  const { request } = current();
  if (printed) change({ printed: { text: printed } });
  if (request?.id !== id || request.stopped) return;
  change({ request: { ...request, rate, code: chooser(request, steps) } });
  onlooker?.(request, steps);
  pacer.push(steps);
}

/** What has chosen all that is told, with these tokens; undefined before the first. @param {Request} request @param {Step[]} steps */
function chooser({ code: before }, steps) {
  const { code } = current(); // the worker says that it is another before it tells what that has chosen
  if (steps.every((step) => step.from_prompt)) return before;
  return before === undefined || before === code ? code : "";
}

/**
 * A turn's `code`, once more of it is told.
 * @param {Turn} turn
 * @param {Request} request
 */
function codeOf({ code: before }, { code = null, message }) {
  const { told = [], forced = [], typed = "" } = message;
  const isWhole = told.length === 0 && forced.length === 0 && !typed;
  if (isWhole) return code ?? undefined; // such code may remember what it has told
  return code === null && before === undefined ? undefined : "";
}

/** @param {Step[]} steps */
function show(steps) {
  const { request } = current();
  const placed = request && room(request);
  if (!placed) return;
  const { leaf, turn: id } = placed;
  const given = steps.filter((step) => step.from_prompt); // the prompt comes first
  const told = steps.slice(given.length);
  const { text: before, tokens, dropped, parent } = leaf.turns[id];
  const code = codeOf(leaf.turns[id], request);
  if (told.length > 0 && performance.getEntriesByName("first-token").length === 0) performance.mark("first-token");
  const prompt = request.reads && parent !== null ? leaf.turns[parent] : null;
  const read = prompt && given.length > 0 ? set(leaf, prompt.id, { text: prompt.text + text(given) }) : leaf;
  const shown = {
    text: before + text(told),
    tokens: [...tokens, ...told.map(({ token }) => token)],
    dropped: Math.max(dropped, ...steps.map(({ dropped }) => dropped ?? 0)),
    rate: request.rate,
    reason: null,
    ...(code !== undefined && { code }),
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
  const placed = request.home === null ? null : room(request);
  if (!placed) {
    change({ request: null, ended }); // stopped before there was anything
    return;
  }
  const { leaf, turn } = placed;
  const figures = { reason: ended, seconds: leaf.turns[turn].seconds + seconds, rate };
  change({ request: null, ended, leaf: set(leaf, turn, figures) });
}
