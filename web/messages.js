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
 * @property {Part} snapshot  Python's memory with the part of Fabella in it that tells stories and converses (snapshot.js)
 * @property {Part} stdlib  Python's standard library, a zip
 * @property {Part} further  those of our modules that are not in the snapshot: to look inside, to prove, to run code
 *
 * @typedef {object} Assets  where build.py put the parts
 * @property {Part} worker
 * @property {Part} helper  the script of a helper thread
 * @property {Python} python
 * @property {string[]} hosts  of models from elsewhere: the origins that the page's policy allows
 * @property {Record<Build, Part>} engines  run.wasm in every build
 * @property {ModelPart} model  the page's own
 * @property {ModelPart[]} offers  those that its builder offers besides
 * @property {AdapterPart | null} adapter  for the page's own model, in use from the start
 * @property {Record<Room, Part>} rooms  scripts for what is not there at first (rooms.js)
 * @property {boolean} offline  whether the page keeps itself on the visitor's machine
 *
 * @typedef {"chat" | "code" | "look" | "proof" | "share" | "shelf"} Room
 *
 * @typedef {"simd" | "relaxed" | "threads-simd" | "threads-relaxed"} Build
 *
 * @typedef {object} Settings
 * @property {number} temperature
 * @property {number} top_p
 * @property {number} top_k  0: off
 * @property {number} min_p  0: off
 * @property {number} repetition_penalty  1: off
 * @property {string} seed  a whole number from 1 on, of up to 18 decimal digits
 * @property {number} length  the greatest length in tokens: of a story, the prompt's included, or of an answer;
 *     0: the context's
 * @property {boolean} [loops]  whether to stop when it has begun to loop
 * @property {boolean} [look]  whether each step says how its token was chosen
 *     (others, left out by most: py/fabella/page.py)
 *
 * @typedef {object} Card  what a model file says of itself: py/fabella/summary.py
 * @property {string} id  the SHA-256 of the file, in hexadecimal digits
 * @property {string} name  may be empty
 * @property {string | null} title  of a page around it
 * @property {string | null} about  one or two sentences
 * @property {string[]} beginnings  of texts that it tells well; there may be none
 * @property {string | null} language  a tag of BCP 47
 * @property {ModelSettings} settings  how its tokens are to be picked, unless the visitor says otherwise
 * @property {string} family  as "Llama" or "Gemma 3"
 * @property {string} quantization  the number format of most of its weights, as "Q8_0"; or "mixed"
 * @property {number} bytes  of the file
 * @property {number} parameters
 * @property {number} context  tokens
 * @property {number} vocab_size
 * @property {number} layers
 * @property {number} dim
 * @property {string | null} license
 * @property {boolean} chats  whether it is made for conversations
 * @property {number} memory  bytes that the engine needs for it, once its context is full
 * @property {number} memory_per_token  bytes of these for each token of the context
 *
 * @typedef {{name: string, about: string}} AdapterCard  what an adapter's file says of itself; both may be empty
 * @typedef {Part & AdapterCard} AdapterPart
 *
 * @typedef {object} ModelSettings  py/fabella/sampler.py says what each means
 * @property {number} temperature
 * @property {number} top_p
 * @property {number} top_k
 * @property {number} min_p
 * @property {number} typical_p
 * @property {number} repetition_penalty
 * @property {number} presence_penalty
 * @property {number} frequency_penalty
 * @property {number} penalty_window
 * @property {number} length  tokens; 0: the whole context
 *
 * @typedef {Part & Card & {file: string}} ModelPart  a model that the page's builder offers; file: its name; the URL may
 *     be that of another host
 *
 * @typedef {{kind: "offer", part: ModelPart, chosen?: boolean} | {kind: "kept", id: string}
 *     | {kind: "file", file: File, tokenizer?: File} | {kind: "url", url: string}} Source  where a model comes from: the
 *     page (chosen by the visitor: a later version of the page will not remove it), what is kept on this machine
 *     (store.js), the visitor's disk, or another host, which has to allow it
 *
 * @typedef {{id: string, name: string, bytes: number, card: Card | null, kept_at: number}} Kept  a model on this
 *     machine; kept_at: milliseconds since 1970
 * @typedef {{used: number, quota: number, persisted: boolean}} Usage  of this origin, in bytes
 *
 * @typedef {{role: "system" | "user" | "assistant", content: string}} Message
 *
 * @typedef {{token: number, text: string, from_prompt: boolean, dropped?: number, choice?: string,
 *            probability?: number}} Step  dropped: how many of the oldest turns the model no longer sees from here on;
 *     choice: if one looks, what is kept of how the token was chosen (py/fabella/choice.py), in base64; probability: its
 *     own, before the sampler
 * @typedef {"end" | "length" | "context" | "stop" | "loop" | "stopped" | "code"} Reason  code: the visitor's code went
 *     wrong
 * @typedef {{message: string, line: number | null}} CodeProblem  line: where, from 1 on
 *
 * @typedef {{module: WebAssembly.Module, snapshot: ArrayBuffer}} StartOfPython  pyodide.asm.wasm, and the snapshot without
 *     its compression
 *
 * page → worker
 * @typedef {{type: "load", id: number, assets: Assets, base: string, source: Source, python: StartOfPython}} Load  once,
 *     first; base: the page's URL; the answer is Ready
 * @typedef {{told?: number[], forced?: (number | null)[], typed?: string, plainly?: boolean}} Way  told: all tokens that were sampled so
 *     far with these settings: it goes on after them, and they are not told again; forced: tokens that are taken then in
 *     the place of those sampled, null: the sampled one; typed: a text that is; plainly: the sampler picks, also where
 *     the visitor's code would
 * @typedef {{type: "tell", id: number, prompt: string, settings: Settings} & Way} Tell  after Ready; the answer is Done,
 *     or Failure, and before it Steps
 * @typedef {{type: "say", id: number, messages: Message[], settings: Settings} & Way} Say  after Ready, to a model that
 *     chats: the last message is to be answered or, if it is an answer, gone on with; answered as Tell
 * @typedef {{type: "stop", id: number}} Stop  has a Tell or Say answered at once
 * @typedef {{type: "count", id: number, prompt?: string, messages?: Message[]}} Count  after Ready; answered by Counted
 * @typedef {{type: "describe", id: number, file: File, tokenizer?: File}} Describe  after Ready: what is this model file?
 *     Answered by Described, or by Failure if it cannot run
 * @typedef {{type: "adapt", id: number, file?: File, on: boolean}} Adapt  after Ready: has the model take the adapter in
 *     the file, in the place of one that it may have, and switches the one that it has on or off. What is being told is
 *     stopped. Answered by Adapted, or by Failure: then nothing has changed
 * @typedef {{type: "call", id: number, module: string, request: string, file?: File, alone?: boolean}} Call  after
 *     Ready: hands a request to the function `answer` of one of our further modules of Python's; alone: what is being told
 *     is stopped. Answered by Called, or by Failure
 * @typedef {{type: "code", id: number, source: string}} UseCode  after Ready: has the visitor's code choose the tokens
 *     from the next one on. Answered by Coded
 * @typedef {Load | Tell | Say | Stop | Count | Describe | Adapt | Call | UseCode} ToWorker
 *
 * worker → page
 * @typedef {{type: "progress", part: "model" | "python", loaded: number, total: number, resumed_from: number}} Progress
 *     bytes; total is 0 if nobody knows it; those before resumed_from were here already and say nothing of the rate.
 *     Less may be loaded than before, where a download had to start anew
 * @typedef {{type: "ready", id: number, model: Card, kept: boolean, why: string | null, adapter: AdapterCard | null}}
 *     Ready  why: in a sentence, why it is not kept on this machine; adapter: in use
 * @typedef {{type: "counted", id: number, tokens: number, strange: number}} Counted  strange: characters of
 *     the box that are no pieces of the vocabulary
 * @typedef {{type: "described", id: number, card: Card & { adapter?: AdapterCard }}} Described  of an adapter's file the
 *     card has nothing but that
 * @typedef {{type: "adapted", id: number, adapter: AdapterCard | null}} Adapted  adapter: what the file says
 * @typedef {{type: "called", id: number, answer: string}} Called
 * @typedef {{type: "engine", simd: "simd" | "relaxed", threads: number}} EngineState  the build, and how many threads
 *     were chosen: before the first story, and when there was time after one
 * @typedef {{type: "steps", id: number, steps: Step[], tokens_per_second: number, printed?: string}} Steps  at most one
 *     a frame, but that the first sampled token is sent at once; printed: by the visitor's code
 * @typedef {{type: "done", id: number, reason: Reason, tokens: number, seconds: number,
 *            tokens_per_second: number, problem?: CodeProblem}} Done  problem: of the visitor's code
 * @typedef {{type: "coded", id: number, printed: string, problem: CodeProblem | null}} Coded  with a problem, all is as
 *     it was
 * @typedef {{type: "calls"}} Calls  the visitor's code begins to run: from here on, until an answer, silence means that
 *     it hangs
 * @typedef {{type: "error", id: number | null, field: string | null, message: string, way_out?: WayOut}} Failure
 *     id null: the worker could not load or cannot go on, and has to be started afresh; way_out: how
 * @typedef {Progress | Ready | Counted | Described | Adapted | Called | EngineState | Steps | Done | Coded
 *     | Calls | Failure} FromWorker
 */

export {};
