/** The tokenizer at work: how what is typed becomes tokens, and how a word came to be these. */

import { make } from "../make.js";
import { shown, spoken } from "./words.js";

/** @import { Token } from "./words.js" */

/** @typedef {{ text: string, tokens: (Token & { bytes: string })[], merges: number }} Word */

/** Words that are shown. */
const MOST = 200;

export class TokensView {
  element = make("div", { class: "look-tokens" });
  #head = make("p", { class: "look-head", "aria-live": "polite" });
  #words = make("p", { class: "look-words", role: "group", "aria-label": "Your prompt’s tokens" });
  #word = make("div", { class: "look-word", "aria-live": "polite" });
  #chosen = -1; // the number of the word that the visitor chose
  /** @type {Word[]} */
  #all = [];
  #steps = 0; // of the word that was asked about last

  /** @param {(word: number) => Promise<string[][] | null>} merges  asks how a word became tokens */
  constructor(merges) {
    this.merges = merges;
    this.element.append(this.#head, this.#words, this.#word, make("p", { class: "hint" }, HINT));
    this.#words.addEventListener("click", ({ target }) => {
      const word = target instanceof Element ? target.closest("button") : null;
      if (word) this.#choose((this.#chosen = Number(word.dataset.word)));
    });
  }

  /** @param {string} words  why there is nothing */
  empty(words) {
    this.#head.textContent = words;
    this.#words.replaceChildren();
    this.#word.replaceChildren();
  }

  /** @param {Word[]} words */
  draw(words) {
    const count = words.reduce((sum, { tokens }) => sum + tokens.length, 0);
    const more = words.length > MOST ? `, of which the first ${MOST} words are shown` : "";
    this.#head.textContent = `Your prompt is ${count} ${count === 1 ? "token" : "tokens"} to the model${more}.`;
    this.#all = words;
    let number = 0; // of the token, for two colours in turn
    const nodes = words.slice(0, MOST).map(({ tokens }, index) => {
      const pieces = tokens.map((token) => make("span", { class: number++ % 2 ? "odd" : "even" }, shown(token)));
      const label = `${tokens.map(spoken).join(", then ")}: show how`;
      return make("button", { type: "button", "data-word": String(index), "aria-label": label }, ...pieces);
    });
    this.#words.replaceChildren(...nodes);
    const first = words.findIndex(({ tokens }) => tokens.every(({ kind }) => kind === "text"));
    if (words.length) this.#choose(this.#chosen in nodes ? this.#chosen : Math.max(first, 0));
    else this.#word.replaceChildren();
  }

  /** @param {number} index */
  async #choose(index) {
    for (const button of this.#words.querySelectorAll("button"))
      button.ariaPressed = String(button.dataset.word === String(index));
    const asked = ++this.#steps;
    const steps = await this.merges(index);
    if (asked !== this.#steps || !steps) return;
    const { tokens } = this.#all[index];
    const head = make("tr", {}, ...["token", "number", "bytes"].map((name) => make("th", { scope: "col" }, name)));
    const rows = tokens.map((token) => {
      const bytes = token.bytes.replace(/../g, "$& ").trim().toUpperCase();
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, shown(token)),
        make("td", {}, String(token.id)),
        make("td", {}, bytes),
      );
    });
    const path = make("ol", { class: "look-merges" });
    for (const [at, parts] of steps.entries()) {
      const before = steps[at - 1];
      const joined = before ? parts.findIndex((part, place) => part !== before[place]) : -1;
      const pieces = parts.map((part, place) =>
        make("span", place === joined ? { class: "joined" } : {}, part.replace(/[ ▁]/g, "␣")),
      );
      path.append(make("li", {}, ...pieces));
    }
    this.#word.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
    if (steps.length > 1)
      this.#word.append(make("p", {}, "From single characters, two neighbours joined at a time:"), path);
  }
}

const HINT =
  "A model reads numbers, not letters. Its vocabulary has a number for each of its pieces; a word that is none of them is " +
  "put together. Type in the prompt’s box, and watch; press a word to see how it came about.";
