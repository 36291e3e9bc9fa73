/**
 * The page's state: one object. What happens is told to `change`; what is seen is drawn by the views (views/), each of
 * which watches the part that it shows.
 */

/** @import { Model, Reason, Settings } from "./messages.js" */
/** @import { WayOut } from "./problem.js" */

/**
 * @typedef {object} State
 * @property {"loading" | "ready" | "failed"} worker  how far the storyteller is
 * @property {Record<string, { loaded: number, total: number }>} arrived  bytes of the download, part by part
 * @property {({ name: string, bytes: number } & Partial<Model>) | null} model  what is known of it so far
 * @property {{ simd: "simd" | "relaxed", threads: number } | null} engine
 * @property {string} prompt  as it is in its field
 * @property {Settings} settings  as the visitor has them; the seed is empty as long as chance chooses it
 * @property {Request | null} request  the story that is being told, or will be once the storyteller is ready
 * @property {Story | null} story  the one on the page
 * @property {Reason | null} ended  how the last request ended
 * @property {Complaint | null} complaint
 *
 * @typedef {object} Request  a story that the visitor asked for
 * @property {number} id
 * @property {string} prompt
 * @property {Settings} settings
 * @property {number | null} question  its number at the worker, once it has been asked
 * @property {boolean} stopped  Stop was pressed: nothing more of it is shown
 *
 * @typedef {object} Story
 * @property {number} id  the request's
 * @property {string} prompt  what of the prompt is there
 * @property {string} text  what the model has added
 * @property {number} tokens  in that
 * @property {number} rate  tokens a second
 * @property {{ reason: Reason, context: number, seconds: number, seed: string, keep: boolean } | null} ending
 *     `context`: the model's; `keep`: the seed is not in its field
 *
 * @typedef {object} Complaint
 * @property {string} message
 * @property {string | null} field  the id of the control that it is about
 * @property {WayOut} wayOut
 */

/** @type {State} */
const state = {
  worker: "loading",
  arrived: {},
  model: null,
  engine: null,
  prompt: "",
  settings: { temperature: 0, top_p: 0, top_k: 0, length: 0, seed: "" },
  request: null,
  story: null,
  ended: null,
  complaint: null,
};

/** @type {(() => void)[]} */
const watchers = [];

/** The state as it is, to be looked at only. @returns {Readonly<State>} */
export const current = () => state;

/** @param {Partial<State>} part  what is another from now on */
export function change(part) {
  Object.assign(state, part);
  for (const look of watchers) look();
}

/**
 * Draws at once, and after each change in which one of the selected values is another.
 * @template {unknown[]} T
 * @param {(state: Readonly<State>) => [...T]} select
 * @param {(...values: T) => void} draw
 */
export function watch(select, draw) {
  /** @type {T | null} */
  let drawn = null;
  const look = () => {
    const selected = select(state);
    if (drawn && selected.every((value, index) => value === drawn?.[index])) return;
    drawn = selected;
    draw(...selected);
  };
  watchers.push(look);
  look();
}

const BUSY = /** @type {const} */ ({ loading: "waiting", ready: "telling", failed: "failed" });

/** What the page is doing, in a word. @param {Readonly<State>} state */
export const phase = ({ worker, request }) => (request ? BUSY[worker] : worker);
