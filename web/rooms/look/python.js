/** Asks Python what there is to see (py/fabella/glass.py), and remembers what it has said. */

/** @import { Leaf, Turn } from "../../leaf.js" */
/** @import { Glass } from "../look.js" */
/** @import { Notes } from "./notes.js" */

/** @typedef {"choice" | "inside" | "tokens" | "merges"} What */

/** Answers that are remembered. */
const KEPT = 600;

export class Python {
  /** By the question. @type {Map<string, any>} */
  #said = new Map();

  /** @param {Glass} house @param {Notes} notes */
  constructor(house, notes) {
    this.house = house;
    this.notes = notes;
  }

  /** @param {What} what @param {object} request @returns {Promise<any>} rejects with a Refusal */
  async ask(what, request) {
    const text = JSON.stringify({ what, ...request });
    const before = this.#said.get(text);
    if (before) return before;
    const { answer } = await this.house.question({ type: "call", module: "glass", request: text }).answer;
    const said = JSON.parse(answer);
    if (this.#said.size >= KEPT) this.#said.clear();
    if (what !== "inside" && !("exactly" in request)) this.#said.set(text, said);
    return said;
  }

  /**
   * What only the model itself can say: the text is told again if the model has gone on to another.
   * @param {Leaf} leaf
   * @param {Turn} turn
   * @param {What} what
   * @param {object} request
   * @returns {Promise<any>} null: nobody knows
   */
  async exactly(leaf, turn, what, request) {
    const first = await this.ask(what, request).catch(() => null);
    if (first || this.house.current().request) return first;
    await this.notes.find(leaf, turn, () => {});
    return this.ask(what, request).catch(() => null);
  }

  /** Another worker may say otherwise. */
  forget() {
    this.#said.clear();
  }
}
