/**
 * The page's state: one object. What happens is told to `change`; what is seen is drawn by the views (views/, rooms/),
 * each of which watches the part that it shows.
 */

/** @import { Leaf } from "./leaf.js" */
/** @import { Card, CodeProblem, Done, Reason, Settings, Source, ToWorker } from "./messages.js" */
/** @import { Pace } from "./pace.js" */
/** @import { WayOut } from "./problem.js" */

/**
 * @typedef {object} State
 * @property {"loading" | "ready" | "failed"} worker  how far the storyteller is
 * @property {Record<string, { loaded: number, total: number }>} arrived  bytes of the download, part by part
 * @property {number} rate  bytes a second of it
 * @property {Source | null} source  where the model comes from
 * @property {Card | null} model  what is known of it
 * @property {{ simd: "simd" | "relaxed", threads: number } | null} engine
 * @property {"story" | "chat"} mode  whether the model tells or talks
 * @property {string} prompt  as it is in its field
 * @property {string} system  what a conversation's model is told at first, as it is in its field
 * @property {Settings} settings  as the visitor has them; the seed is empty as long as chance chooses it
 * @property {Pace} pace
 * @property {{ tokens: number, strange: number } | null} counted  how long the prompt is, or the conversation with it
 * @property {Leaf | null} leaf  what stands on the page
 * @property {Leaf | null} aside  the one that stood there when the model did the other thing
 * @property {Request | null} request  what is being told, or will be once the storyteller is ready
 * @property {Reason | null} ended  how the last request ended
 * @property {Complaint | null} complaint
 * @property {{ name: string, about: string, on: boolean, own: boolean } | null} adapter  beside the model; own:
 *     the page came with it
 * @property {string | null} code  of the visitor's that chooses the tokens; null: the sampler does
 * @property {CodeProblem | null} codeProblem  what went wrong in it last
 * @property {{ text: string }} printed  by it, last
 * @property {string} unkept  why the model is not kept on this machine; "" if it is
 * @property {string} keeping  why nothing can be kept on this machine; "" if it can
 *
 * @typedef {object} Request  what the visitor asked for
 * @property {number} id
 * @property {Asked} message  to the worker
 * @property {() => Leaf} place  the leaf with room for the text: its last turn, unless `turn` is another
 * @property {Leaf | null} before  the leaf as it was
 * @property {number | null} turn  where the text goes, once there is room for it
 * @property {string | null} home  the id of its leaf, once there is room for it
 * @property {boolean} reads  whether the reader is to see the prompt as the model reads it
 * @property {number | null} question  its number at the worker, once it has been asked
 * @property {Done | null} done  how it ended at the worker, which may be ahead of the reader
 * @property {number} rate  tokens a second
 * @property {boolean} stopped  Stop was pressed: nothing more of it is shown
 * @property {string | null} [code]  what has chosen all that the worker has told of it: the visitor's code, or with null
 *     the sampler; "" if not the same has chosen all
 *
 * @typedef {Omit<Extract<ToWorker, { type: "tell" }>, "id"> | Omit<Extract<ToWorker, { type: "say" }>, "id">} Asked
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
  rate: 0,
  source: null,
  model: null,
  engine: null,
  mode: "story",
  prompt: "",
  system: "",
  settings: { temperature: 0, top_p: 0, top_k: 0, min_p: 0, repetition_penalty: 1, length: 0, seed: "" },
  pace: "reading",
  counted: null,
  leaf: null,
  aside: null,
  request: null,
  ended: null,
  complaint: null,
  adapter: null,
  code: null,
  codeProblem: null,
  printed: { text: "" },
  unkept: "",
  keeping: "",
};

/** @type {Set<() => void>} */
const watchers = new Set();

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
 * @returns {() => void} ends it
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
  watchers.add(look);
  look();
  return () => {
    watchers.delete(look);
  };
}

const BUSY = /** @type {const} */ ({ loading: "waiting", ready: "telling", failed: "failed" });

/** What the page is doing, in a word. @param {Readonly<State>} state */
export const phase = ({ worker, request }) => (request ? BUSY[worker] : worker);
