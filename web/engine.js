/**
 * Starts run.wasm in the build that suits this browser, and finds out how many threads make it fastest.
 *
 * Threads need memory that workers share, and browsers have that only on pages whose host sends two headers
 * (Cross-Origin-Opener-Policy and Cross-Origin-Embedder-Policy). Elsewhere there is one thread; all else is the same.
 */

import { download, downloadModule, startWorker } from "./download.js";
import { notStarted } from "./problem.js";

/** @import { Part } from "./messages.js" */

const NAME = "The engine (run.wasm)";

/** As in wasm/parallel.h. */
const MAX_THREADS = 8;

/** Bytes of a helper's stack. */
const STACK = 65536;

/** Pages of 64 KiB, as build.py tells the linker. */
const SHARED_MEMORY = { initial: 256, maximum: 65536, shared: true };

/** Milliseconds until processor and browser are up to speed, and of one measurement; how many are added up. */
const WARM_UP = 20;
const MEASUREMENT = 5;
const ROUNDS = 5;

/** More threads must make the engine at least this much faster: less may be chance. */
const WORTHWHILE = 1.1;

/**
 * A module whose function `dot` computes (127, 127, 127, 127) · (255, 255, 255, 255) with the instruction that the
 * relaxed builds are for, i32x4.relaxed_dot_i8x16_i7x16_add_s. 255 does not fit the 7 bits that it is defined for.
 */
// prettier-ignore
const RELAXED_DOT = Uint8Array.of(
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
  1, 5, 1, 0x60, 0, 1, 0x7f, // a function that returns an i32
  3, 2, 1, 0,
  7, 7, 1, 3, 0x64, 0x6f, 0x74, 0, 0, // its name
  10, 24, 1, 22, 0,
  0x41, 0xff, 0, 0xfd, 15, 0x41, 0xff, 1, 0xfd, 15, 0x41, 0, 0xfd, 15, // i8x16.splat of 127, of 255, of 0
  0xfd, 0x93, 2, 0xfd, 27, 0, 0x0b, // relaxed_dot, i32x4.extract_lane 0
);

/**
 * What comes out where the processor has no such instruction and the browser puts it together from older ones: two of
 * the four products are added in 16 bits first, which 255 overflows. (wasm/LOG.md: there the other builds are faster.)
 */
const PUT_TOGETHER = 2 * 32767;

/** Picks the fastest build of run.wasm that works here. */
export function pickBuild() {
  /** @type {"simd" | "relaxed"} */
  const simd = hasRelaxedDot() ? "relaxed" : "simd";
  const memory = maxThreads() > 1 ? sharedMemory() : null;
  return { simd, memory, name: memory ? /** @type {const} */ (`threads-${simd}`) : simd };
}

function hasRelaxedDot() {
  if (!WebAssembly.validate(RELAXED_DOT)) return false;
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(RELAXED_DOT));
  return /** @type {() => number} */ (exports.dot)() !== PUT_TOGETHER;
}

const maxThreads = () => Math.min(navigator.hardwareConcurrency, MAX_THREADS);

/** @returns {WebAssembly.Memory | null} memory that several workers can use, if this page can have that */
function sharedMemory() {
  try {
    return crossOriginIsolated ? new WebAssembly.Memory(SHARED_MEMORY) : null;
  } catch (error) {
    if (error instanceof RangeError) return null; // no room for so large a memory as it may grow to
    throw error;
  }
}

/**
 * @param {ReturnType<typeof pickBuild>} build
 * @param {Part} run  run.wasm in that build; its URL is absolute, as that of `helper`
 * @param {Part} helper  helper.js
 * @param {(bytes: number) => void} count
 */
export async function startEngine({ simd, memory }, run, helper, count) {
  const script = memory ? download(helper, "The script of the helper threads", () => {}) : null;
  script?.catch(() => {}); // it is waited for below
  const imports = { env: { emscripten_notify_memory_growth() {}, ...(memory && { memory }) } };
  const { compiled, arrived } = downloadModule(run, NAME, count);
  const module = await compiled;
  await arrived;
  const { exports } = await WebAssembly.instantiate(module, imports).catch((error) => {
    throw notStarted(NAME, error);
  });
  const engine = new Engine(simd, { ...exports, ...(memory && { memory }) });
  engine.exports._initialize();
  script?.then(
    (file) => engine.startHelpers(() => startWorker(file), module, /** @type {WebAssembly.Memory} */ (memory)),
    () => {}, // without it there is one thread
  );
  return engine;
}

/** An instance of run.wasm, with its helper threads. */
export class Engine {
  /** Who becomes thread 1, 2, ...  @type {Worker[]} */
  #helpers = [];
  /** Who is not ready yet: a worker that nobody holds may be ended. @type {Set<Worker>} */
  #starting = new Set();
  /** 0 until they are chosen. */
  threads = 0;

  /**
   * @param {"simd" | "relaxed"} simd
   * @param {Record<string, any>} exports  the instance's, with the memory among them
   */
  constructor(simd, exports) {
    this.simd = simd;
    this.exports = exports;
  }

  /**
   * Starts as many helpers as could be of use. The engine works without any that does not start.
   * @param {() => Worker} start  starts helper.js
   * @param {WebAssembly.Module} module
   * @param {WebAssembly.Memory} memory
   */
  startHelpers(start, module, memory) {
    for (let thread = 1; thread < maxThreads(); thread++) {
      const stack = this.exports.allocate(STACK) >>> 0;
      if (stack === 0) return;
      const helper = start();
      try {
        helper.postMessage({ module, memory, stackTop: ((stack + STACK) & ~15) >>> 0 });
      } catch (error) {
        if (!(error instanceof DOMException && error.name === "DataCloneError")) throw error;
        helper.terminate(); // WebKitGTK 2.50: isolated, but no shared memory may leave the worker that made it
        this.exports.release(stack);
        return;
      }
      this.#starting.add(helper);
      helper.onmessage = () => {
        this.#starting.delete(helper);
        helper.onerror = null;
        this.#helpers.push(helper);
      };
      helper.onerror = (event) => {
        event.preventDefault(); // the page goes on, with one thread less
        this.#starting.delete(helper);
        this.exports.release(stack);
      };
    }
  }

  /**
   * Measures the engine with one thread, with two, four, and so on while that makes it faster. To be called between
   * stories, because the machine has more or less else to do each time.
   * @param {(milliseconds: number) => number} measure  works for about this long and returns the time of one step
   */
  chooseThreads(measure) {
    const most = this.#helpers.length + 1;
    let best = 1;
    if (best < most) measure(WARM_UP);
    while (best < most) {
      const more = Math.min(2 * best, most);
      if (!this.#isFaster(more, best, measure)) break;
      best = more;
    }
    this.#setThreads(best);
  }

  /**
   * @param {number} more  threads
   * @param {number} fewer
   * @param {(milliseconds: number) => number} measure
   */
  #isFaster(more, fewer, measure) {
    let before = 0;
    let after = 0;
    for (let round = 0; round < ROUNDS; round++) {
      this.#setThreads(fewer);
      before += measure(MEASUREMENT);
      this.#setThreads(more);
      after += measure(MEASUREMENT);
    }
    return before >= WORTHWHILE * after;
  }

  /** @param {number} threads */
  #setThreads(threads) {
    this.threads = this.exports.set_threads(threads);
    for (let thread = 1; thread < threads; thread++) this.#helpers[thread - 1].postMessage(thread);
  }
}
