/**
 * The tokens in the text on the page: where each stands, which is under the pointer, and colours, which the browser lays
 * over the text without a change to it (CSS Custom Highlight API).
 */

/** @import { Note } from "./notes.js" */

/** Up to which probability of the token taken a text has which tint: the names are those of look.css. */
export const TINTS = /** @type {const} */ ([
  [0.05, "look-below-5"],
  [0.2, "look-below-20"],
  [0.5, "look-below-50"],
]);
const WORD = "look-word";

/** Characters that may be missing in a row where the text is shown. */
const FAR = 200;

export class Marks {
  /** Where each character stands. @type {{ node: Text, offset: number }[]} */
  #points = [];
  /** Where each token begins in the text; last, where it ends. @type {number[]} */
  #starts = [];
  /** @type {Text[]} */
  #nodes = [];

  /**
   * Finds a turn's tokens on the page.
   * @param {Element | null} element  where it stands
   * @param {string} before  what stands there before it
   * @param {readonly (Note | undefined)[]} notes
   */
  find(element, before, notes) {
    this.#starts = [before.length];
    for (const note of notes) this.#starts.push(this.#starts[this.#starts.length - 1] + (note?.text.length ?? 0));
    const text = before + notes.map((note) => note?.text ?? "").join("");
    this.#points = [];
    this.#nodes = [];
    if (!element) return;
    // What is shown of an answer may lack some of its signs, which say how it is to be shown.
    const nodes = document.createTreeWalker(element, NodeFilter.SHOW_TEXT, ({ parentElement }) =>
      parentElement?.closest("button") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT,
    );
    let at = 0;
    while (nodes.nextNode()) {
      const node = /** @type {Text} */ (nodes.currentNode);
      this.#nodes.push(node);
      for (let offset = 0; offset < node.data.length; offset++) {
        const found = text[at] === node.data[offset] ? at : text.indexOf(node.data[offset], at);
        if (found < 0 || found > at + FAR) continue;
        this.#points[found] = { node, offset };
        at = found + 1;
      }
    }
  }

  /** @param {number} place @returns {Range | null} of a token; null if nothing of it is seen */
  range(place) {
    let first = null;
    let last = null;
    for (let at = this.#starts[place]; at < this.#starts[place + 1]; at++) {
      const point = this.#points[at];
      if (!point) continue;
      first ??= point;
      last = point;
    }
    if (!first || !last) return null;
    const range = new Range();
    range.setStart(first.node, first.offset);
    range.setEnd(last.node, last.offset + 1);
    return range;
  }

  /** Which token is under the pointer. @param {MouseEvent} event @returns {number} -1: none */
  at({ clientX, clientY }) {
    const { node, offset: caretAt } = caret(clientX, clientY);
    if (!node || !this.#nodes.includes(node)) return -1;
    // The caret stands between two characters: the pointer is on one of them.
    for (const offset of [caretAt, caretAt - 1]) {
      if (offset < 0 || offset >= node.data.length) continue;
      const character = new Range();
      character.setStart(node, offset);
      character.setEnd(node, offset + 1);
      const isHit = [...character.getClientRects()].some(
        ({ left, right, top, bottom }) =>
          clientX >= left - 1 && clientX <= right + 1 && clientY >= top - 1 && clientY <= bottom + 1,
      );
      if (isHit)
        return this.#placeOf(this.#points.findIndex((point) => point?.node === node && point.offset === offset));
    }
    return -1;
  }

  /** @param {number} at */
  #placeOf(at) {
    if (at < this.#starts[0]) return -1;
    const place = this.#starts.findLastIndex((start) => start <= at);
    return place < this.#starts.length - 1 ? place : -1;
  }

  /** Marks the token in view. @param {number} place  -1: none */
  mark(place) {
    paint(WORD, [place < 0 ? null : this.range(place)], 1);
  }

  /** Tints all tokens by how likely each was. @param {readonly (Note | undefined)[]} notes  none: takes the tints away */
  tint(notes) {
    /** @type {(Range | null)[][]} */
    const ranges = TINTS.map(() => []);
    for (const [place, note] of notes.entries()) {
      const tint = TINTS.findIndex(([most]) => note && note.probability < most);
      if (tint >= 0) ranges[tint].push(this.range(place));
    }
    for (const [index, [, name]] of TINTS.entries()) paint(name, ranges[index], 0);
  }
}

/**
 * Between which characters a point lies.
 * @param {number} x
 * @param {number} y
 * @returns {{ node: Text | null, offset: number }}
 */
function caret(x, y) {
  const any = /** @type {any} */ (document);
  const position = any.caretPositionFromPoint?.(x, y);
  const range = position ? null : any.caretRangeFromPoint?.(x, y);
  const node = position?.offsetNode ?? range?.startContainer;
  return { node: node instanceof Text ? node : null, offset: position?.offset ?? range?.startOffset ?? 0 };
}

/** Whether this browser can lay colours over a text. */
export const canPaint = "highlights" in CSS;

/** @param {string} name @param {(Range | null)[]} ranges @param {number} priority */
function paint(name, ranges, priority) {
  if (!canPaint) return;
  const highlight = new Highlight(...ranges.filter((range) => range !== null));
  highlight.priority = priority;
  CSS.highlights.set(name, highlight);
}
