/**
 * The messages between the page (app.js) and its worker (worker.js): types only, no code.
 * A message about one story carries that story's `id`.
 *
 * @typedef {object} Assets  where build.py put the parts; every URL is relative to the page
 * @property {string} worker
 * @property {string} helper  the script of a helper thread
 * @property {string} python  Pyodide's folder, with "/" at its end
 * @property {Record<string, string>} python_info  Pyodide's versions: "info" in its pyodide-lock.json
 * @property {string} stdlib  Python's standard library, a zip
 * @property {string} wheel  the fabella wheel
 * @property {number} python_bytes  size of these three
 * @property {Record<Build, {url: string, bytes: number}>} engines  run.wasm in every build
 * @property {{url: string, bytes: number, name: string}} model
 *
 * @typedef {"simd" | "relaxed" | "threads-simd" | "threads-relaxed"} Build
 *
 * @typedef {object} Settings
 * @property {number} temperature
 * @property {number} top_p
 * @property {number} top_k  0: off
 * @property {string} seed  decimal digits, up to 64 bits
 * @property {number} length  the story's greatest length in tokens, the prompt's included
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
 *
 * @typedef {{token: number, text: string, from_prompt: boolean}} Step
 * @typedef {"end" | "length" | "context" | "stopped"} Reason
 *
 * page → worker
 * @typedef {{type: "load", assets: Assets, base: string}} Load  once, first; base: the page's URL
 * @typedef {{type: "tell", id: number, prompt: string, settings: Settings}} Tell  after "ready"
 * @typedef {{type: "stop", id: number}} Stop
 * @typedef {Load | Tell | Stop} ToWorker
 *
 * worker → page
 * @typedef {{type: "progress", part: "model" | "python", loaded: number, total: number}} Progress  bytes
 * @typedef {{type: "ready", model: Model}} Ready
 * @typedef {{type: "engine", simd: "simd" | "relaxed", threads: number}} EngineState  the build, and how many threads
 *     were chosen: before the first story, and when there was time after one
 * @typedef {{type: "steps", id: number, steps: Step[], tokens_per_second: number}} Steps  at most one a frame,
 *     but that the first sampled token is sent at once
 * @typedef {{type: "done", id: number, reason: Reason, tokens: number, seconds: number,
 *            tokens_per_second: number}} Done
 * @typedef {{type: "error", id: number | null, field: string | null, message: string}} Failure
 *     id null: the worker could not load or cannot go on, and has to be started afresh
 * @typedef {Progress | Ready | EngineState | Steps | Done | Failure} FromWorker
 */

export {};
