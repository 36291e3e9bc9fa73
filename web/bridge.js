/**
 * The page's end of the bridge: starts the worker, and asks it. A question has a number, and its answer is a promise.
 */

import { TOLD, isMessage, told } from "./distrust.js";
import { damageOf, download, downloadModule, startWorker } from "./download.js";
import { HANG, Problem, SILENCE, broken, causeOf, hung, impossible, notStarted } from "./problem.js";
import { decompress } from "./snapshot.js";
import { persist } from "./store.js";

/** @import { Assets, EngineState, FromWorker, Load, Part, Progress, Ready, Source, Steps, ToWorker } from "./messages.js" */

/** Bytes of a model that is worth a promise of the browser's not to remove it. */
const PRECIOUS = 16e6;

const NAME = "The storyteller’s script";
const ENGINE = "The Python engine";

/** What the worker will not do, in words for the visitor; it goes on. */
export class Refusal extends Error {
  /**
   * @param {string} message
   * @param {string | null} field  the id of the control that it is about
   */
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

/** @param {Part} part */
const at = (part) => ({ ...part, url: new URL(part.url, document.baseURI).href });

/**
 * A message without its number.
 * @template T
 * @typedef {T extends { id: number } ? Omit<T, "id"> : never} WithoutId
 */
/** @typedef {WithoutId<Exclude<ToWorker, { type: "stop" }>>} Question */

/** A worker, from its start to its end. */
export class Bridge {
  /** @type {Worker | undefined} */
  #worker;
  #over = false;
  #questions = 0;
  /** Those without an answer. @type {Map<number, { hear: (message: Steps) => void, resolve: (answer: any) => void, reject: (error: unknown) => void, told: number }>} */
  #asked = new Map();
  #silence = 0; // a timer
  #calls = false; // whether the visitor's code is called now
  #calling = 0; // the question that it may be called for
  /** Whether code of the visitor's has run in it, which may have changed anything there. */
  isTouched = false;

  /**
   * @param {Assets} assets
   * @param {(message: Progress | EngineState) => void} hear  what it tells unasked
   * @param {(problem: unknown) => void} fail  it cannot start, or cannot go on; called once at most
   */
  constructor(assets, hear, fail) {
    this.assets = assets;
    this.hear = hear;
    this.fail = fail;
  }

  /**
   * Starts the worker and has it load a model.
   * @param {Source} source
   * @param {(bytes: number) => void} count  bytes of what starts it
   * @returns {Promise<Ready>}
   */
  async load(source, count) {
    try {
      const problem = impossible();
      if (problem) throw problem;
      return await this.#load(source, count);
    } catch (error) {
      this.#fail(await causeOf(error instanceof Problem ? error : notStarted("This page", error)));
      return new Promise(() => {});
    }
  }

  /**
   * All that starts Python is downloaded here, while the worker does not run yet.
   * @param {Source} source
   * @param {(bytes: number) => void} count
   */
  async #load(source, count) {
    const { worker, python } = this.assets;
    const { compiled, arrived } = downloadModule(at(python.wasm), ENGINE, count);
    const decompressed = download(at(python.snapshot), "The storyteller’s program", count).then((file) =>
      decompress(file.toStream()),
    );
    decompressed.catch(() => {}); // it is waited for below
    const [engine, script] = await Promise.all([
      download(at(python.script), `${ENGINE}’s script`, count),
      // Hosts may add lines to a script, so it is compared only if it does not start.
      download({ ...at(worker), sha256: undefined }, NAME, count),
    ]);
    const notHeard = async (/** @type {string} */ reason) => {
      const damage = await damageOf(script, worker, NAME);
      this.#fail(damage ?? (await causeOf(notStarted(NAME, reason))));
    };
    if (this.#over) return new Promise(() => {});
    this.#start(startWorker(engine, script), notHeard);
    const [module, snapshot] = await Promise.all([compiled, decompressed]);
    this.#silence = setTimeout(notHeard, 1000 * SILENCE, "it says nothing");
    /** @type {Omit<Load, "id">} */
    const question = {
      type: "load",
      assets: this.assets,
      base: document.baseURI,
      source,
      python: { module, snapshot },
    };
    const [model] = await Promise.all([this.ask(question, undefined, [snapshot]).answer, arrived]);
    return model;
  }

  /**
   * @param {Worker} worker
   * @param {(reason: string) => void} notHeard
   */
  #start(worker, notHeard) {
    this.#worker = worker;
    worker.onmessage = ({ data }) => {
      clearTimeout(this.#silence);
      this.#silence = 0;
      if (this.isTouched && !isMessage(data)) this.#fail(broken());
      else this.#receive(data);
      this.#listen();
    };
    worker.onerror = ({ message }) => {
      clearTimeout(this.#silence);
      if (this.isTouched) this.#fail(broken());
      else notHeard(message);
    };
  }

  /** From now on silence means that the visitor's code hangs, if it has run at all and there is something to be said. */
  #listen() {
    if (!this.isTouched || this.#over || this.#silence || this.#asked.size === 0) return;
    const seconds = this.#calls ? HANG : SILENCE; // other things may take long, too
    this.#silence = setTimeout(() => this.#fail(hung(seconds)), 1000 * seconds);
  }

  /**
   * @param {Question} question
   * @param {(message: Steps) => void} [hear]  what comes before the answer
   * @param {Transferable[]} [given]  what the worker takes over
   * @returns {{ id: number, answer: Promise<any> }} the answer is rejected with a Refusal, and never comes from a worker
   *     that has failed: `fail` hears of that
   */
  ask(question, hear = () => {}, given = []) {
    const id = ++this.#questions;
    if (question.type === "tell" || question.type === "say") this.#calling = id;
    const answer = new Promise((resolve, reject) => this.#asked.set(id, { hear, resolve, reject, told: 0 }));
    this.#worker?.postMessage(/** @type {ToWorker} */ ({ ...question, id }), given);
    this.#listen();
    return { id, answer };
  }

  /** @param {number} id  the question's whose answer may come at once */
  stop(id) {
    this.#worker?.postMessage(/** @type {ToWorker} */ ({ type: "stop", id }));
    if (this.isTouched) setTimeout(() => this.#asked.has(id) && this.#fail(hung(HANG)), 1000 * HANG);
  }

  /** @param {FromWorker} message */
  #receive(message) {
    if (message.type === "progress" || message.type === "engine") {
      this.hear(message);
      return;
    }
    if (message.type === "calls") {
      this.isTouched = this.#calls = true;
      return;
    }
    if (message.type === "error" && message.id === null) {
      this.#fail(new Problem(message.message, message.way_out));
      return;
    }
    const asked = this.#asked.get(/** @type {number} */ (message.id));
    if (message.type === "steps") {
      if (!asked) return;
      asked.told += told(message);
      if (this.isTouched && asked.told > TOLD) this.#fail(broken());
      else asked.hear(message);
      return;
    }
    if (message.id === this.#calling || message.type === "coded") this.#calls = false;
    if (message.type === "ready" && message.kept && message.model.bytes > PRECIOUS) persist();
    this.#asked.delete(/** @type {number} */ (message.id));
    if (message.type === "error") asked?.reject(new Refusal(message.message, message.field));
    else asked?.resolve(message);
  }

  /** Ends the worker, of which nothing more is heard. */
  end() {
    this.#over = true;
    clearTimeout(this.#silence);
    this.#worker?.terminate();
    this.#worker = undefined;
  }

  /**
   * Ends the worker, and tells why.
   * @param {unknown} problem
   */
  #fail(problem) {
    if (this.#over) return;
    this.end();
    this.fail(problem);
  }
}
