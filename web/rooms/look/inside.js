/**
 * Inside the model, before one token: which earlier tokens each head of each layer looked at, and what each layer would
 * have said if it were the last.
 */

import { make } from "../make.js";
import { boxed, percent, shown, spoken } from "./words.js";

/** @import { Candidate, Token } from "./words.js" */

/**
 * @typedef {object} Inside
 * @property {Token[]} tokens  up to the one that was looked from
 * @property {number} layers
 * @property {number} heads  of each layer
 * @property {string} attention  base64 of float32, (layers, heads, tokens), little-endian
 * @property {Candidate[][]} lens  by layer
 * @property {Record<string, Token>} names
 */

/** Tokens that a strip shows: the last ones, and the first. */
const LONGEST = 160;

/** Pixels of a small multiple: as many columns at most, and its height. */
const COLUMNS = 48;
const HEIGHT = 14;

/** More layers than these are drawn smaller. */
const DEEP = 12;

/** How deep a share's tint is: by its root, or all but the largest would be white. @param {number} share */
const depth = (share) => 0.55 * Math.sqrt(share);

export class InsideView {
  element = make("div", { class: "look-inside" });
  #head = make("p", { class: "look-head" });
  #title = make("h3", {});
  #strip = make("p", {
    class: "look-strip",
    dir: "auto",
    tabindex: "0",
    role: "group",
    "aria-label": "The text so far",
  });
  #most = make("p", {});
  #grid = make("div", { class: "look-grid", role: "grid", "aria-label": "All heads" });
  #lens = make("table", { class: "look-lens" });
  /** @type {HTMLElement[][]} */
  #cells = [];
  #layer = 0;
  #head_ = -1; // -1: the mean of all heads
  /** @type {{ inside: Inside, weights: Float32Array } | null} */
  #seen = null;

  constructor() {
    const attention = make("section", { "aria-label": "Attention" }, this.#title, this.#strip, this.#most, this.#grid);
    const note = make("p", { class: "hint" }, HINT);
    attention.append(note);
    const lens = make("section", { "aria-label": "Lens" }, make("h3", {}, "If this layer were the last"), this.#lens);
    lens.append(make("p", { class: "hint" }, LENS));
    this.element.append(this.#head, attention, lens);
    this.#grid.addEventListener("click", ({ target }) => {
      const cell = target instanceof Element ? target.closest("[data-head]") : null;
      if (cell instanceof HTMLElement) this.#choose(Number(cell.dataset.layer), Number(cell.dataset.head));
    });
    this.#grid.addEventListener("keydown", (event) => this.#walk(event));
    this.empty("");
  }

  /** @param {string} words  why there is nothing */
  empty(words) {
    this.#seen = null;
    this.#head.textContent = words;
    for (const part of [...this.element.children].slice(1)) /** @type {HTMLElement} */ (part).hidden = true;
  }

  /** @param {Inside} inside */
  draw(inside) {
    if (this.#seen?.inside === inside) return;
    const bytes = Uint8Array.from(atob(inside.attention), (sign) => sign.charCodeAt(0));
    this.#seen = { inside, weights: new Float32Array(bytes.buffer) };
    for (const part of this.element.children) /** @type {HTMLElement} */ (part).hidden = false;
    const last = inside.tokens[inside.tokens.length - 1];
    this.#head.replaceChildren("The model has read all up to ", boxed(last), " and works out what comes next.");
    this.#layer = Math.min(this.#layer, inside.layers - 1);
    this.#head_ = Math.min(this.#head_, inside.heads - 1);
    this.#multiples();
    this.#choose(this.#layer, this.#head_);
    this.#layers();
  }

  /** The shares of one head; -1: the mean of all of all layers. @param {number} layer @param {number} head */
  #weights(layer, head) {
    const { inside, weights } = /** @type {{ inside: Inside, weights: Float32Array }} */ (this.#seen);
    const { tokens, heads, layers } = inside;
    const count = tokens.length;
    if (head >= 0) return weights.subarray((layer * heads + head) * count, (layer * heads + head + 1) * count);
    const mean = new Float32Array(count);
    for (let at = 0; at < weights.length; at++) mean[at % count] += weights[at] / (layers * heads);
    return mean;
  }

  /** @param {number} layer @param {number} head */
  #choose(layer, head) {
    if (!this.#seen) return;
    const { tokens } = this.#seen.inside;
    [this.#layer, this.#head_] = [layer, head];
    const weights = this.#weights(layer, head);
    this.#title.textContent =
      head < 0 ? "Where it looks, all heads together" : `Where layer ${layer + 1}, head ${head + 1} looks`;
    const from = Math.max(1, tokens.length - LONGEST);
    /** @type {(string | Node)[]} */
    const parts = [];
    for (const [at, token] of tokens.entries()) {
      if (at === 1 && from > 1) parts.push(" … ");
      if (at > 0 && at < from) continue;
      const part = make("span", { title: percent(weights[at]) }, token.kind === "text" ? token.text : shown(token));
      part.style.backgroundColor = `rgb(var(--tint) / ${depth(weights[at]).toFixed(3)})`;
      parts.push(part);
    }
    this.#strip.replaceChildren(...parts);
    const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, 4);
    const most = order.flatMap((at, rank) => [rank ? ", " : "Most at ", boxed(tokens[at]), ` ${percent(weights[at])}`]);
    this.#most.replaceChildren(...most);
    for (const cell of this.#cells.flat()) {
      const isChosen = cell.dataset.head === String(head) && (head < 0 || cell.dataset.layer === String(layer));
      cell.ariaSelected = String(isChosen);
      cell.tabIndex = isChosen ? 0 : -1;
    }
  }

  /** All heads, each as a strip: a row for each layer, and above them the mean of all. */
  #multiples() {
    const { layers, heads } = /** @type {{ inside: Inside }} */ (this.#seen).inside;
    const colour = getComputedStyle(document.documentElement).getPropertyValue("--tint");
    const numbers = (/** @type {number} */ count) => Array.from({ length: count }, (_, index) => index);
    this.#cells = [[this.#cell(0, -1, colour)]];
    for (const layer of numbers(layers))
      this.#cells.push(numbers(heads).map((head) => this.#cell(layer, head, colour)));
    const names = numbers(heads).map((head) => make("span", { role: "columnheader" }, String(head + 1)));
    const rows = this.#cells.map((cells, index) => {
      const name = make("span", { role: "rowheader" }, index ? `layer ${index}` : "mean");
      return make("div", { role: "row", ...(!index && { class: "look-mean" }) }, name, ...cells);
    });
    rows.splice(1, 0, make("div", { role: "row" }, make("span", { role: "columnheader" }, "head"), ...names));
    this.#grid.style.setProperty("--heads", String(heads));
    this.#grid.classList.toggle("deep", layers > DEEP);
    this.#grid.replaceChildren(...rows);
  }

  /** @param {number} layer @param {number} head @param {string} colour */
  #cell(layer, head, colour) {
    const { tokens } = /** @type {{ inside: Inside }} */ (this.#seen).inside;
    const weights = this.#weights(layer, head);
    const most = weights.reduce((best, share, at) => (share > weights[best] ? at : best), 0);
    const whose = head < 0 ? "Mean of all heads" : `Layer ${layer + 1}, head ${head + 1}`;
    const label = `${whose}: most at ${spoken(tokens[most])}, ${percent(weights[most])}`;
    const data = { "data-layer": String(layer), "data-head": String(head) };
    const drawn = strip(weights, head < 0 ? LONGEST : COLUMNS, colour);
    return make("span", { role: "gridcell", "aria-label": label, title: label, ...data }, drawn);
  }

  /** @param {KeyboardEvent} event */
  #walk(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || !target.dataset.head) return;
    event.preventDefault();
    event.stopPropagation(); // the page's arrows walk through the text
    const row = this.#cells.findIndex((cells) => cells.includes(target));
    const cells = this.#cells[row + step[0]];
    const to = cells?.[Math.min(Math.max(Number(target.dataset.head), 0) + step[1], cells.length - 1)];
    if (!to) return;
    this.#choose(Number(to.dataset.layer), Number(to.dataset.head));
    to.focus();
  }

  #layers() {
    const { inside } = /** @type {{ inside: Inside }} */ (this.#seen);
    const rows = inside.lens.map((best, layer) => {
      const row = make("tr", {}, make("th", { scope: "row" }, `layer ${layer + 1}`));
      for (const [id, , probability] of best) {
        row.append(make("td", {}, shown(inside.names[id]), " ", make("small", {}, percent(probability))));
      }
      return row;
    });
    this.#lens.replaceChildren(make("tbody", {}, ...rows));
  }
}

/**
 * A small multiple: a column for each token, or for several the one most looked at.
 * @param {Float32Array} weights
 * @param {number} longest  columns at most
 * @param {string} colour
 */
function strip(weights, longest, colour) {
  const columns = Math.min(weights.length, longest);
  const canvas = make("canvas", { width: String(columns), height: String(HEIGHT), "aria-hidden": "true" });
  const paper = canvas.getContext("2d");
  for (let column = 0; column < columns; column++) {
    const from = Math.floor((column * weights.length) / columns);
    const share = Math.max(...weights.subarray(from, Math.floor(((column + 1) * weights.length) / columns)));
    if (!paper) break;
    const height = HEIGHT * Math.sqrt(share); // as deep as the tint
    paper.fillStyle = `rgb(${colour})`;
    paper.fillRect(column, HEIGHT - height, 1, height);
  }
  return canvas;
}

const HINT =
  "To foretell the next token, each layer looks back at all tokens so far, with several heads, each in its own way. The " +
  "deeper the colour, the more. Many heads look at the first token when they have nothing to look for.";
const LENS =
  "The model computes layer after layer. Here each layer’s half-finished result goes through the model’s own last step: " +
  "how its guess comes about. Only the last layer’s is what it says.";
