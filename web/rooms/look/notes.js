/**
 * What is known of each token that the model has chosen: heard as it comes about, or else found out by having the text
 * told again with the same tokens, which comes to the same, bit for bit.
 */

import { before, messages } from "../../leaf.js";

/** @import { Leaf, Turn } from "../../leaf.js" */
/** @import { Settings, Step, Way } from "../../messages.js" */
/** @import { Asked, Request } from "../../state.js" */
/** @import { Glass } from "../look.js" */

/**
 * @typedef {object} Note
 * @property {number} token
 * @property {string} text  what it adds to the text; may be empty
 * @property {string} choice  what Python has kept of how it was chosen
 * @property {number} probability  the token's own, before the sampler
 * @property {boolean} [again]  whether it was found out by telling the text again: the sampler did, whoever had chosen
 */

/** @param {Leaf} leaf @param {Turn} turn */
const key = (leaf, turn) => `${leaf.id} ${turn.id}`;

/**
 * What has a turn of the model's told, up to some place, and another way from there.
 * @param {Leaf} leaf
 * @param {Turn} turn
 * @param {string} text  what was told up to there
 * @param {Settings} settings
 * @param {Way} way
 * @returns {Asked}
 */
export function asked(leaf, turn, text, settings, way) {
  const turns = before(leaf, turn.id);
  if (leaf.kind === "story") return { type: "tell", prompt: turns[0].text, settings, ...way };
  const said = messages(leaf.system, [...turns, { role: /** @type {const} */ ("assistant"), text }]);
  return { type: "say", messages: said, settings, ...way };
}

export class Notes {
  /** By the leaf's id and the turn's. @type {Map<string, (Note | undefined)[]>} */
  #kept = new Map();
  /** Of what is being told. @type {{ request: number, notes: (Note | undefined)[] } | null} */
  #live = null;
  #missed = -1; // a request
  /** The token before the first of a turn's; null: the one that begins every text. @type {Map<string, number | null>} */
  #before = new Map();
  /** The turn that is being told again. */
  #again = "";
  /** Turns that were told again. @type {Set<string>} */
  #found = new Set();
  /** What the next request begins with. @type {Note[] | null} */
  #beginning = null;

  /** @param {Glass} house */
  constructor(house) {
    this.house = house;
  }

  /** The next request goes on after these. @param {Note[]} notes */
  begin(notes) {
    this.#beginning = notes;
  }

  /** @param {Request} request @param {Step[]} steps */
  hear(request, steps) {
    const told = steps.filter((step) => !step.from_prompt);
    if (this.#missed === request.id || told.some(({ choice }) => !choice)) return; // not heard from its beginning
    if (this.#live?.request !== request.id) {
      const { leaf } = this.house.current();
      const turn = leaf && request.turn !== null ? leaf.turns[request.turn] : null;
      const place = request.message.told?.length ?? turn?.tokens.length ?? 0;
      const known = this.#beginning ?? (leaf && turn && this.#kept.get(key(leaf, turn))) ?? [];
      this.#live = { request: request.id, notes: Array.from({ length: place }, (_, index) => known[index]) };
      this.#beginning = null;
      if (leaf && turn) this.#kept.set(key(leaf, turn), this.#live.notes); // or `of` does it, once it has a turn
      const last = this.#live.notes.at(-1);
      // A character that was cut off comes whole.
      if (last) this.#live.notes[place - 1] = { ...last, text: last.text.replace(/\uFFFD+$/, "") };
    }
    this.#live.notes.push(...told.map(noted));
  }

  /** What is being told is heard no longer. */
  miss() {
    this.#missed = this.house.current().request?.id ?? -1;
    this.#live = null;
  }

  /** @param {Leaf} leaf @param {Turn} turn @param {Step[]} steps  all of its tokens' */
  keep(leaf, turn, steps) {
    this.#kept.set(key(leaf, turn), steps.map(noted));
  }

  /**
   * Those of a turn, as far as they are known; of one that is being told also those that are not shown yet.
   * @param {Leaf} leaf
   * @param {Turn} turn
   * @returns {(Note | undefined)[]}
   */
  of(leaf, turn) {
    const { request } = this.house.current();
    if (this.#live && request?.id === this.#live.request && request.turn === turn.id && request.home === leaf.id) {
      this.#kept.set(key(leaf, turn), this.#live.notes);
    }
    return this.#kept.get(key(leaf, turn)) ?? [];
  }

  /** The token before a turn's first; it is known once the turn was told again. @param {Leaf} leaf @param {Turn} turn */
  before(leaf, turn) {
    return this.#before.get(key(leaf, turn));
  }

  /** Whether all of a turn is known. @param {Leaf} leaf @param {Turn} turn */
  isWhole(leaf, turn) {
    const notes = this.of(leaf, turn);
    return turn.tokens.every((token, index) => notes[index]?.token === token);
  }

  /** Whether it may help to have a turn told again. @param {Leaf} leaf @param {Turn} turn */
  canFind(leaf, turn) {
    return (
      this.house.isOurs(leaf) && turn.settings !== null && !this.#found.has(`${key(leaf, turn)} ${turn.tokens.length}`)
    );
  }

  /**
   * Has a turn told again, unless that is so already or something else is being told.
   * @param {Leaf} leaf
   * @param {Turn} turn
   * @param {() => void} then  called when it is known, or as far as it can be
   */
  async find(leaf, turn, then) {
    const { house } = this;
    const { request, worker } = house.current();
    if (request || worker !== "ready" || !turn.settings || this.#again === key(leaf, turn)) return;
    this.#again = key(leaf, turn);
    const settings = { ...turn.settings, look: true };
    /** @type {Note[]} */
    const notes = [];
    const way = { told: [], forced: turn.tokens, plainly: true };
    const { id, answer } = house.question(asked(leaf, turn, "", settings, way), ({ steps }) => {
      const given = steps.findLast((step) => step.from_prompt);
      if (given) this.#before.set(key(leaf, turn), given.token);
      notes.push(...steps.filter((step) => !step.from_prompt).map((step) => ({ ...noted(step), again: true })));
      if (notes.length >= turn.tokens.length) house.hush(id);
    });
    try {
      await answer;
      if (!this.#before.has(key(leaf, turn))) this.#before.set(key(leaf, turn), null);
      if (isBy(leaf, turn, notes)) this.#kept.set(key(leaf, turn), notes.slice(0, turn.tokens.length));
    } catch (error) {
      console.warn(error); // a Refusal: what is not known is said to be so
    }
    if (this.#again === key(leaf, turn)) this.#found.add(`${key(leaf, turn)} ${turn.tokens.length}`); // to its end
    this.#again = "";
    then();
  }

  /** Something else is being told now: what was told again is not heard to its end. */
  interrupt() {
    this.#again = "";
  }
}

/**
 * Whether a story is what the model tells with its settings and the reader's choices: with another adapter it is not. Of
 * an answer, and of what code chose, nobody knows.
 * @param {Leaf} leaf
 * @param {Turn} turn
 * @param {Note[]} notes
 */
function isBy({ kind }, { choices = [], code, tokens }, notes) {
  const taken = new Set(choices.map(([place]) => place));
  const others = notes.slice(0, tokens.length).filter((note, place) => isGiven(note) && !taken.has(place));
  return kind === "chat" || code !== undefined || others.length === 0;
}

/** Whether the token was taken in the place of another. @param {Note} note */
export function isGiven({ choice }) {
  const bytes = Uint8Array.from(atob(choice.slice(0, 16)), (sign) => sign.charCodeAt(0));
  const [, token, picked] = new Int32Array(bytes.buffer.slice(0, 12)); // as py/fabella/choice.py begins them
  return token !== picked;
}

/** @param {Step} step @returns {Note} */
const noted = ({ token, text, choice = "", probability = 0 }) => ({ token, text, choice, probability });
