/** The tour: "How does it pick a word?" in seven steps, each about the visitor's own text, in the panel as it is. */

import { button, make } from "../make.js";
import { wholeNumber } from "../../words.js";

/** @import { Card } from "../../messages.js" */

/**
 * @typedef {object} Sights  what the tour can have the panel do
 * @property {(tab: "Choice" | "Inside" | "Tokens") => void} show
 * @property {(place: number) => void} go  to a token of the text
 * @property {() => boolean} isTold  whether there is a text of the model's
 * @property {() => void} tell  has one told
 * @property {() => Card | null} model
 *
 * @typedef {object} Stop
 * @property {string} title
 * @property {(model: Card | null) => string} says
 * @property {"Choice" | "Inside" | "Tokens"} tab
 * @property {number} [place]  of the token in view; without one it may be any, also none
 * @property {string} [points]  at what of the panel
 */

/** @type {Stop[]} */
const STOPS = [
  {
    title: "A text",
    says: () =>
      "A language model does one thing: it reads a text and guesses how it goes on, one small piece at a time. The text " +
      "is your prompt. Change it if you like: the tour goes with you.",
    tab: "Tokens",
  },
  {
    title: "Tokens",
    says: (model) =>
      `First the text is cut into pieces, which are called tokens. This model knows ${wholeNumber(model?.vocab_size ?? 0)} ` +
      "of them: common words are one token, rare ones are put together from several. Press a word to see how.",
    tab: "Tokens",
    points: ".look-words",
  },
  {
    title: "Numbers",
    says: (model) =>
      "A computer cannot calculate with letters. So each token has a number, and to each number belongs a list of " +
      `${wholeNumber(model?.dim ?? 0)} values, learned from very many texts: it says what the token is like. From here on ` +
      "all is arithmetic.",
    tab: "Tokens",
    points: ".look-word",
  },
  {
    title: "Attention",
    says: (model) =>
      `Now ${model?.layers ?? "several"} layers calculate, one after the other. In each, every token looks back at those ` +
      "before it and takes from them what it needs: who the story is about, what was said. The deeper the colour, the more " +
      "it takes from there.",
    tab: "Inside",
    place: 0,
    points: ".look-strip",
  },
  {
    title: "Probabilities",
    says: () =>
      "After the last layer every token of the vocabulary has a probability of coming next. Here are the likeliest. The " +
      "model does not say which one it will be: only how likely each is.",
    tab: "Choice",
    place: 0,
    points: ".look-bars",
  },
  {
    title: "Dice",
    says: () =>
      "One is drawn. Laid end to end, the candidates fill a line from 0 to 1, a likely one more of it. A random number, the " +
      "coin, falls on the line, and where it falls, that token is taken. With the same seed it falls the same way again.",
    tab: "Choice",
    place: 0,
    points: ".look-coin",
  },
  {
    title: "And again",
    says: () =>
      "The token is put at the end of the text, and all of it happens again for the next. There is no plan, only the text " +
      "so far. Walk on with ‹ ›, or take another token, and see where the text goes then.",
    tab: "Choice",
    place: 1,
    points: ".look-walk",
  },
];

export class Tour {
  element = make("section", { class: "look-tour", "aria-labelledby": "look-tour-title", hidden: "" });
  /** Begins it, or returns to where one was. */
  begin = button("How does it pick a word?", () => this.#visit(this.#at));
  #title = make("h3", { id: "look-tour-title", tabindex: "-1" });
  #says = make("p");
  #needs = make("p", { class: "actions" }, "This needs a text of the model’s: ");
  #back = button("Back", () => this.#visit(this.#at - 1));
  #next = button("Next", () => this.#visit(this.#at + 1));
  #at = 0;
  /** What it speaks of. @type {Element | null} */
  #pointed = null;
  #isSeen = true; // whether that was brought into sight

  /** @param {Sights} sights */
  constructor(sights) {
    this.sights = sights;
    this.#needs.append(button("Tell one", () => sights.tell()));
    const leave = button("Leave", () => {
      this.#leave();
      this.begin.focus();
    });
    const actions = make("p", { class: "actions" }, this.#back, this.#next, leave);
    this.element.append(this.#title, this.#says, this.#needs, actions);
  }

  #leave() {
    this.element.hidden = true;
    this.begin.hidden = false;
    this.#point("");
  }

  /** @param {number} at */
  #visit(at) {
    if (at >= STOPS.length) {
      this.#at = 0;
      this.#leave();
      this.begin.focus();
      return;
    }
    this.#at = Math.max(0, at);
    this.element.hidden = false;
    this.begin.hidden = true;
    const { title, tab, place } = STOPS[this.#at];
    this.#title.textContent = `${this.#at + 1} of ${STOPS.length}: ${title}`;
    this.#back.disabled = this.#at === 0;
    this.#next.textContent = this.#at === STOPS.length - 1 ? "Done" : "Next";
    this.sights.show(tab);
    if (place !== undefined) this.sights.go(place);
    this.#isSeen = false;
    this.draw();
    this.#title.focus({ preventScroll: true });
  }

  /** What it says may have become another: the model, or whether there is a text. */
  draw() {
    if (this.element.hidden) return;
    const { says, place, points = "" } = STOPS[this.#at];
    this.#says.textContent = says(this.sights.model());
    this.#needs.hidden = place === undefined || this.sights.isTold();
    this.#point(points);
    const top = /** @type {HTMLElement} */ (this.element.parentElement);
    const pointed = /** @type {HTMLElement} */ (this.#pointed ?? top.nextElementSibling);
    if (this.#isSeen || pointed.getClientRects().length === 0) return; // it is still to come
    this.#isSeen = true;
    pointed.style.scrollMarginTop = `calc(${top.offsetHeight}px + 1rem)`; // the tour stays at the panel's upper edge
    pointed.scrollIntoView({ block: "nearest" });
  }

  /** @param {string} selector  of what it speaks of */
  #point(selector) {
    const pointed = (selector && this.element.closest(".look")?.querySelector(selector)) || null;
    if (pointed === this.#pointed) return;
    this.#pointed?.classList.remove("look-pointed");
    pointed?.classList.add("look-pointed");
    this.#pointed = pointed;
  }
}
