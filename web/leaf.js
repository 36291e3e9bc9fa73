/**
 * A leaf of the book: one story or one conversation, with all the ways that it has gone.
 *
 * It is a tree of turns. A turn's branches are what was said in its place; of these one is picked, and the picked turns
 * from the first to the last are what the reader sees. Nothing here changes a leaf: a function returns the changed one.
 */

import { hex } from "./bytes.js";

/** @import { Message, Reason, Settings } from "./messages.js" */

/**
 * @typedef {object} Turn
 * @property {number} id  its index in the leaf's turns
 * @property {number | null} parent  the turn that it follows
 * @property {"user" | "assistant"} role  a story's prompt is its user's
 * @property {string} text  so far; of a prompt, once the model has read it, what its tokens say
 * @property {number[]} tokens  that the model has chosen for it
 * @property {Settings | null} settings  of the model's turns, with the seed
 * @property {string} [code]  of the visitor's, which chose all of its tokens, in one go; "" if it chose some of them: then
 *     nothing tells it again
 * @property {Reason | null} reason  why it ended; null as long as it has not
 * @property {number} seconds
 * @property {number} rate  tokens a second
 * @property {number} dropped  how many of the oldest turns the model no longer saw
 * @property {[place: number, token: number][]} [choices]  of a story: tokens that the reader took in the place of those
 *     that chance would have, by their places among `tokens`, from the first on
 *
 * @typedef {object} Leaf
 * @property {string} id
 * @property {"story" | "chat"} kind
 * @property {string} title  "" as long as nobody has given it one
 * @property {{ id: string, name: string }} model
 * @property {string} system  what a conversation's model was told at first
 * @property {number} changed  milliseconds since 1970
 * @property {Turn[]} turns
 * @property {Record<string, number>} picked  by a turn's id the turn that follows; by "" the first
 */

/**
 * @param {Leaf["kind"]} kind
 * @param {Leaf["model"]} model
 * @param {string} [system]
 * @returns {Leaf}
 */
export function newLeaf(kind, model, system = "") {
  return {
    id: newId(),
    kind,
    title: "",
    model: { id: model.id, name: model.name },
    system,
    changed: Date.now(),
    turns: [],
    picked: {},
  };
}

/** The id of a leaf. */
export const newId = () => hex(crypto.getRandomValues(new Uint8Array(12)));

/** @param {number | null} id */
const key = (id) => (id === null ? "" : String(id));

/**
 * Adds a turn behind another, or at the beginning, and picks it.
 * @param {Leaf} leaf
 * @param {number | null} parent
 * @param {Turn["role"]} role
 * @param {string} text
 * @param {Settings | null} [settings]
 * @returns {Leaf} whose last turn is the new one
 */
export function add(leaf, parent, role, text, settings = null) {
  const id = leaf.turns.length;
  const turn = { id, parent, role, text, tokens: [], settings, reason: null, seconds: 0, rate: 0, dropped: 0 };
  return { ...leaf, changed: Date.now(), turns: [...leaf.turns, turn], picked: { ...leaf.picked, [key(parent)]: id } };
}

/**
 * @param {Leaf} leaf
 * @param {number} id
 * @param {Partial<Turn>} part  what is another in this turn
 * @returns {Leaf}
 */
export function set(leaf, id, part) {
  const turns = leaf.turns.with(id, { ...leaf.turns[id], ...part });
  return { ...leaf, changed: Date.now(), turns };
}

/**
 * Turns to a branch.
 * @param {Leaf} leaf
 * @param {number} id
 * @returns {Leaf}
 */
export const pick = (leaf, id) => ({ ...leaf, picked: { ...leaf.picked, [key(leaf.turns[id].parent)]: id } });

/** What the reader sees. @param {Leaf} leaf @returns {Turn[]} */
export function path(leaf) {
  const turns = [];
  for (let id = leaf.picked[""]; id !== undefined; id = leaf.picked[id]) turns.push(leaf.turns[id]);
  return turns;
}

/** What stands before a turn. @param {Leaf} leaf @param {number} id @returns {Turn[]} */
export function before(leaf, id) {
  const turns = [];
  for (let at = leaf.turns[id].parent; at !== null; at = leaf.turns[at].parent) turns.unshift(leaf.turns[at]);
  return turns;
}

/** A turn and what was said in its place, in the order in which it was. @param {Leaf} leaf @param {number} id */
export function branches(leaf, id) {
  const { parent, role } = leaf.turns[id];
  return leaf.turns.filter((turn) => turn.parent === parent && turn.role === role).map((turn) => turn.id);
}

/** @param {Leaf | null} leaf @returns {Turn | undefined} the last that the reader sees */
export const last = (leaf) => (leaf ? path(leaf).at(-1) : undefined);

/**
 * What a conversation's model is to answer, or to go on with.
 * @param {string} system
 * @param {Pick<Turn, "role" | "text">[]} turns
 * @returns {Message[]}
 */
export function messages(system, turns) {
  const said = turns.map(({ role, text }) => ({ role, content: text }));
  return system.trim() ? [{ role: /** @type {const} */ ("system"), content: system }, ...said] : said;
}

/**
 * A turn's choices as the model wants them.
 * @param {Turn["choices"]} choices
 * @param {number} [from]  the place of the first token that it is asked for
 * @returns {(number | null)[] | undefined} a token for each place, or null for the one sampled there
 */
export function forced(choices, from = 0) {
  /** @type {(number | null)[]} */
  const tokens = [];
  for (const [place, token] of choices ?? []) {
    if (place < from) continue;
    while (tokens.length < place - from) tokens.push(null);
    tokens.push(token);
  }
  return choices && tokens;
}

/** All that the reader sees, as plain text. @param {Leaf} leaf */
export function plainText(leaf) {
  if (leaf.kind === "story")
    return path(leaf)
      .map(({ text }) => text)
      .join("");
  return path(leaf)
    .map(({ role, text }) => `${role === "user" ? "You" : leaf.model.name}: ${text.trim()}`)
    .join("\n\n");
}

/** What a leaf is called where many are listed. @param {Leaf} leaf */
export function titleOf(leaf) {
  const text = leaf.title || path(leaf)[0]?.text || "";
  return text.trim().replace(/\s+/g, " ").slice(0, 80) || "Without a beginning";
}

/** A text in the middle of which the page was left has stopped there. @param {Leaf} leaf @returns {Leaf} */
export function finished(leaf) {
  const stopped = /** @type {const} */ ({ reason: "stopped" });
  const turns = leaf.turns.map((turn) => (turn.role === "assistant" && !turn.reason ? { ...turn, ...stopped } : turn));
  return { ...leaf, turns };
}
