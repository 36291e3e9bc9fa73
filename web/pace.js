/**
 * How fast the text appears. The engine is mostly faster than any reader: what it has told waits here until it is shown.
 */

/** @import { Step } from "./messages.js" */
/** @typedef {"at once" | "reading" | "a word"} Pace */

/** Tokens a second: about as fast as one can read. */
const READING = 16;

/** Milliseconds between two looks at the clock. */
const TICK = 50;

export class Pacer {
  /** @type {Step[]} */
  #waiting = [];
  #timer = 0;
  #since = 0;
  #begun = false; // whether any of the model's own tokens are shown
  #owed = 0; // words to be shown as soon as they are there
  /** @type {(() => void) | null} */
  #ended = null;
  /** @type {Pace} */
  #pace = "at once";

  /** @param {(steps: Step[]) => void} show */
  constructor(show) {
    this.show = show;
  }

  /** Begins with a text. @param {Pace} pace @param {number} owed  words that are shown unasked, at the pace "a word" */
  begin(pace, owed) {
    this.drop();
    this.#owed = owed;
    this.#begun = false;
    this.pace = pace;
  }

  /** May change at any time. @param {Pace} pace */
  set pace(pace) {
    this.#pace = pace;
    clearInterval(this.#timer);
    if (pace === "reading") {
      this.#since = performance.now();
      this.#timer = setInterval(() => this.#read(), TICK);
    }
    if (pace === "at once") this.#take(this.#waiting.length);
  }

  /** @param {Step[]} steps  that the engine has told */
  push(steps) {
    this.#waiting.push(...steps);
    const given = this.#waiting.findIndex((step) => !step.from_prompt);
    if (given !== 0) this.#take(given < 0 ? this.#waiting.length : given); // the prompt is known to the reader
    if (this.#pace === "at once") this.#take(this.#waiting.length);
    else if (this.#pace === "a word") this.#words();
    else if (!this.#begun) this.#take(1); // the first word waits for nothing
  }

  /** The engine has told all. @param {() => void} then  called once all is shown */
  end(then) {
    this.#ended = then;
    if (this.#pace === "a word") this.#words();
    this.#take(0);
  }

  /** Shows one word more. */
  next() {
    if (this.#pace !== "a word") return;
    this.#owed++;
    this.#words();
  }

  /** Forgets what is not shown. */
  drop() {
    clearInterval(this.#timer);
    this.#waiting = [];
    this.#ended = null;
    this.#owed = 0;
  }

  #read() {
    const now = performance.now();
    const count = Math.floor(((now - this.#since) / 1000) * READING);
    if (count === 0) return;
    this.#since += (1000 * count) / READING;
    if (this.#waiting.length === 0) this.#since = now; // time in which there was nothing to read is not made up for
    this.#take(count);
  }

  /** Shows the words that are owed: tokens up to one that begins with a space. */
  #words() {
    while (this.#owed > 0) {
      const next = this.#waiting.findIndex((step, index) => index > 0 && /^\s/.test(step.text));
      if (next < 0 && !this.#ended) return; // its end is not known yet
      this.#owed--;
      this.#take(next < 0 ? this.#waiting.length : next);
      if (next < 0) return;
    }
  }

  /** @param {number} count */
  #take(count) {
    const steps = this.#waiting.splice(0, count);
    this.#begun ||= steps.some((step) => !step.from_prompt);
    if (steps.length > 0) this.show(steps);
    if (this.#ended && this.#waiting.length === 0) {
      const ended = this.#ended;
      this.drop();
      ended();
    }
  }
}
