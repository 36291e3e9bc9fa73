/** @import { WayOut } from "./problem.js" */

/**
 * The messages between the page (bridge.js) and its worker (worker.js): types only, no code.
 * A question has an `id`, which its answer carries, and whatever comes before the answer.
 *
 * @typedef {object} Part  a file of the page
 * @property {string} url  relative to the page
 * @property {number} bytes
 * @property {string[]} [sha256]  of each MiB of it, in hexadecimal digits; without it the file may be any
 *
 * @typedef {object} Python  Pyodide and what runs in it
 * @property {Record<string, string>} info  Pyodide's versions: "info" in its pyodide-lock.json
 * @property {Part} script  pyodide.asm.mjs
 * @property {Part} wasm  pyodide.asm.wasm
 * @property {Part} stdlib  Python's standard library, a zip
 * @property {Part} program  the part of Fabella that tells stories, a wheel of bytecode
 * @property {Part} [chat]  what conversations need besides, if the model is made for them
 *
 * @typedef {object} Assets  where build.py put the parts
 * @property {Part} worker
 * @property {Part} helper  the script of a helper thread
 * @property {Python} python
 * @property {Record<Build, Part>} engines  run.wasm in every build
 * @property {ModelPart} model
 *
 * @typedef {Part & {name: string, id: string}} ModelPart  id: the SHA-256 of the whole file, in hexadecimal digits
 *
 * @typedef {object} Offer  a model of this page
 * @property {"offer"} kind
 * @property {ModelPart} part
 * @property {boolean} [chosen]  by the visitor: a later version of the page will not remove it
 *
 * @typedef {Offer | {kind: "kept", id: string} | {kind: "file", file: File} | {kind: "url", url: string}} Source
 *     where a model comes from: the page, what is kept on this machine (store.js), the visitor's disk, or another host,
 *     which has to allow it
 *
 * @typedef {{id: string, name: string, bytes: number, card: Model | null, kept_at: number}} Kept  a model on this
 *     machine; kept_at: milliseconds since 1970
 * @typedef {{used: number, quota: number, persisted: boolean}} Usage  of this origin, in bytes
 *
 * @typedef {"simd" | "relaxed" | "threads-simd" | "threads-relaxed"} Build
 *
 * @typedef {object} Settings
 * @property {number} temperature
 * @property {number} top_p
 * @property {number} top_k  0: off
 * @property {string} seed  decimal digits, up to 64 bits
 * @property {number} length  the greatest length in tokens: of a story, the prompt's included, or of an answer
 *     (others, left out by most: py/fabella/page.py)
 *
 * @typedef {object} Model  what the model file says of itself
 * @property {string} name
 * @property {number} bytes
 * @property {number} parameters
 * @property {number} context  tokens
 * @property {number} vocab_size
 * @property {number} layers
 * @property {number} dim
 * @property {string | null} [license]
 * @property {boolean} chats  whether it is made for conversations
 *
 * @typedef {{role: "system" | "user" | "assistant", content: string}} Message
 *
 * @typedef {{token: number, text: string, from_prompt: boolean, dropped?: number}} Step  dropped: how many of the
 *     oldest turns the model no longer sees from here on
 * @typedef {"end" | "length" | "context" | "stop" | "stopped"} Reason
 *
 * page → worker
 * @typedef {{type: "load", id: number, assets: Assets, base: string, source: Source}} Load  once, first; base: the
 *     page's URL; the answer is Ready
 * @typedef {{type: "describe", id: number, file: File, tokenizer: File | null}} Describe  after Load: what is this file?
 *     Its header alone is read; the answer is Described, or Failure
 * @typedef {{type: "tell", id: number, prompt: string, settings: Settings}} Tell  after Ready; the
 *     answer is Done, or Failure, and before it Steps
 * @typedef {{type: "say", id: number, messages: Message[], settings: Settings}} Say  after Ready, to a model that chats:
 *     the last message is to be answered or, if it is an answer, gone on with; answered as Tell
 * @typedef {{type: "stop", id: number}} Stop  has a Tell or Say answered at once
 * @typedef {Load | Describe | Tell | Say | Stop} ToWorker
 *
 * worker → page
 * @typedef {{type: "progress", part: "model" | "python", loaded: number, total: number, resumed_from: number}} Progress
 *     bytes; total is 0 if nobody knows it; those before resumed_from were here already and say nothing of the rate.
 *     Less may be loaded than before, where a download had to start anew
 * @typedef {{type: "ready", id: number, model: Model, model_id: string | null, kept: boolean, why: string | null}} Ready
 *     model_id: the file's SHA-256, where it is known; why: in a sentence, why it is not kept on this machine
 * @typedef {{type: "described", id: number, card: Model}} Described
 * @typedef {{type: "engine", simd: "simd" | "relaxed", threads: number}} EngineState  the build, and how many threads
 *     were chosen: before the first story, and when there was time after one
 * @typedef {{type: "steps", id: number, steps: Step[], tokens_per_second: number}} Steps  at most one a frame,
 *     but that the first sampled token is sent at once
 * @typedef {{type: "done", id: number, reason: Reason, tokens: number, seconds: number,
 *            tokens_per_second: number}} Done
 * @typedef {{type: "error", id: number | null, field: string | null, message: string, way_out?: WayOut}} Failure
 *     id null: the worker could not load or cannot go on, and has to be started afresh; way_out: how
 * @typedef {Progress | Ready | Described | EngineState | Steps | Done | Failure} FromWorker
 */

export {};
