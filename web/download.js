/**
 * How the parts of the page arrive: from its own origin alone, never in silence, and compared with what the page was
 * built with. Whatever goes wrong is a Problem, in words.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import {
  SILENCE,
  anotherFile,
  brokenOff,
  elsewhere,
  notStarted,
  refused,
  silent,
  unreachable,
  webPage,
} from "./problem.js";

/** @import { Part } from "./messages.js" */
/** @import { Problem } from "./problem.js" */
/** @typedef {(bytes: number) => void} Count  called with the size of every chunk that arrives */
/** @typedef {Uint8Array<ArrayBuffer>} Chunk */

const { fetch: originalFetch } = globalThis;

/** Of the milliseconds without a byte the last: bytes that came while this thread was busy are noticed then. */
const GRACE = 1000;

/** A request, and the watch over its silence, which begins with it. */
class Arrival {
  #controller = new AbortController();
  #timer = 0;

  /**
   * @param {Part} part  its URL is absolute
   * @param {string} name  as a sentence begins
   */
  constructor(part, name) {
    this.part = part;
    this.name = name;
    this.#heard();
  }

  /** @returns {Promise<Response>} a response whose status is fine */
  async open() {
    let response;
    try {
      // Of the same origin, also when it is redirected: a policy alone could be missing where this runs.
      response = await originalFetch(this.part.url, { mode: "same-origin", signal: this.#controller.signal });
    } catch {
      throw this.#silence() ?? ((await this.#isRedirected()) ? elsewhere(this.name) : unreachable(this.name));
    }
    this.#heard();
    if (!response.ok) {
      this.#end();
      throw refused(this.name, response.status);
    }
    return response;
  }

  /**
   * Reads a response to its end.
   * @param {Response} response
   * @param {Count} count
   * @returns {Promise<Blocks>} the part, which is what the page was built with
   */
  async read(response, count) {
    const { bytes, sha256: expected } = this.part;
    const file = new Blocks();
    const reader = /** @type {ReadableStream<Chunk>} */ (response.body).getReader();
    for (;;) {
      const { done, value } = await reader.read().catch(() => {
        this.#end();
        throw this.#silence() ?? brokenOff(this.name);
      });
      if (done) break;
      this.#heard();
      count(value.length);
      file.append(value);
      if (expected && file.size > bytes) reader.cancel().catch(() => {}); // the next read is the last
    }
    this.#end();
    if (file.isWebPage()) throw webPage(this.name);
    const damage = await damageOf(file, this.part, this.name);
    if (damage) throw damage;
    return file;
  }

  #heard() {
    const fallSilent = () => this.#controller.abort(silent(this.name));
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => (this.#timer = setTimeout(fallSilent, GRACE)), 1000 * SILENCE - GRACE);
  }

  #end() {
    clearTimeout(this.#timer);
  }

  /** The Problem if the silence was too long; the browser need not pass it on. */
  #silence() {
    const { aborted, reason } = this.#controller.signal;
    return aborted ? /** @type {Problem} */ (reason) : null;
  }

  async #isRedirected() {
    try {
      const init = /** @type {const} */ ({ mode: "same-origin", redirect: "manual", signal: this.#controller.signal });
      return (await originalFetch(this.part.url, init)).type === "opaqueredirect";
    } catch {
      return false;
    } finally {
      this.#end();
    }
  }
}

/**
 * Compares a file with what the page was built with.
 * @param {Blocks} file  all of it
 * @param {Part} part  without hashes nothing is compared
 * @param {string} name  as a sentence begins
 * @returns {Promise<Problem | null>}
 */
export async function damageOf(file, { bytes, sha256: expected }, name) {
  if (!expected) return null;
  const came = file.size > bytes ? "more" : `only ${file.size}`;
  if (file.size !== bytes) return anotherFile(name, `${bytes} bytes were expected, and ${came} came`);
  const same = String(await file.sha256()) === String(expected);
  return same ? null : anotherFile(name, "some of its bytes are others");
}

/**
 * Downloads a part.
 * @param {Part} part  its URL is absolute
 * @param {string} name  as a sentence begins
 * @param {Count} count
 */
export async function download(part, name, count) {
  const arrival = new Arrival(part, name);
  return arrival.read(await arrival.open(), count);
}

/**
 * Downloads a WebAssembly module, which is compiled while it arrives. Browsers keep the compiled code only for responses
 * that come to the compiler as the network gave them: a copy is counted and compared.
 * @param {Part} part  its URL is absolute
 * @param {string} name  as a sentence begins
 * @param {Count} count
 * @returns {{ compiled: Promise<WebAssembly.Module>, arrived: Promise<Blocks> }} arrived: the file, which is what the page
 *     was built with; to be waited for before the module's results are trusted, for it need not be there yet
 */
export function downloadModule(part, name, count) {
  const arrival = new Arrival(part, name);
  const opened = arrival.open();
  const arrived = opened.then((response) => arrival.read(response.clone(), count));
  const compiled = opened.then(async (response) => {
    try {
      return await WebAssembly.compileStreaming(asWasm(response));
    } catch (error) {
      await arrived; // what breaks the download breaks the compilation, and says more
      throw notStarted(name, error);
    }
  });
  for (const promise of [arrived, compiled]) promise.catch(() => {}); // whoever waits for the other hears of it
  return { compiled, arrived };
}

/**
 * Browsers compile WebAssembly as it streams only if the server names its type, which not every static server does.
 * @param {Response} response
 */
function asWasm(response) {
  if (response.headers.get("Content-Type") === "application/wasm") return response;
  return new Response(response.body, { headers: { "Content-Type": "application/wasm" } });
}

/**
 * Starts a worker from scripts that have been downloaded: together they are one module. From a Blob, so that it is under
 * the page's own policy, which a worker that comes from a server is only if that sends one, and so that it does not matter
 * what type the server gives scripts.
 * @param {Blocks[]} files
 */
export function startWorker(...files) {
  const url = scriptURL(files);
  const worker = new Worker(url, { type: "module" });
  worker.addEventListener("message", () => URL.revokeObjectURL(url), { once: true });
  return worker;
}

/**
 * Downloads a module and imports it, also if the server gives it another type.
 * @param {Part} part  its URL is absolute
 * @param {string} name  as a sentence begins
 * @returns {Promise<any>}
 */
export async function downloadScript(part, name) {
  const url = scriptURL([await download(part, name, () => {})]);
  try {
    return await import(url);
  } catch (error) {
    throw notStarted(name, error);
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** A URL of scripts, to be revoked once they are read. @param {Blocks[]} files */
function scriptURL(files) {
  const parts = files.flatMap((file) => file.parts());
  return URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
}

/**
 * Bytes of a block, as in build.py, which hashes each: many times what arrives at once. Browsers return the
 * memory of large arrays at once, and keep that of small ones.
 */
const BLOCK = 1 << 20;

/** A downloaded file in blocks, which are released from the front as a loader takes them. */
export class Blocks {
  /** @type {Chunk[]} */
  #blocks = [];
  /** Blocks that have been released. */
  #gone = 0;
  /** Bytes of the whole file. */
  size = 0;

  /** @param {Chunk} data  which this takes: it is empty afterwards */
  append(data) {
    for (let done = 0, count; done < data.length; done += count) {
      const at = this.size % BLOCK;
      if (at === 0) this.#blocks.push(new Uint8Array(BLOCK));
      count = Math.min(data.length - done, BLOCK - at);
      this.#blocks[this.#blocks.length - 1].set(data.subarray(done, done + count), at);
      this.size += count;
    }
    discard(data);
  }

  /** The file's bytes, as long as none is released. */
  parts() {
    return this.#blocks.map((block, number) => block.subarray(0, this.size - number * BLOCK));
  }

  /** The file's bytes as a stream, as long as none is released. */
  toStream() {
    const parts = this.parts();
    return new ReadableStream({
      start(stream) {
        for (const part of parts) stream.enqueue(part);
        stream.close();
      },
    });
  }

  /** A copy of the file in one piece, as long as none of it is released. */
  toBytes() {
    const bytes = new Uint8Array(this.size);
    this.copy(0, bytes);
    return bytes;
  }

  /** The SHA-256 of each block in hexadecimal digits, as long as none is released. */
  sha256() {
    return Promise.all(this.parts().map(hexDigest));
  }

  /** Whether the file begins as HTML does. */
  isWebPage() {
    const beginning = new TextDecoder().decode(this.parts()[0]?.subarray(0, 100));
    return /^\s*<(!doctype|html|head|body|\?xml)/i.test(beginning);
  }

  /**
   * Fills an array with the file's bytes from `offset` on.
   * @param {number} offset
   * @param {Uint8Array} target
   */
  copy(offset, target) {
    if (offset < this.#gone * BLOCK || offset + target.length > this.size) {
      throw new RangeError(`bytes ${offset} to ${offset + target.length} of ${this.#gone * BLOCK} to ${this.size}`);
    }
    for (let done = 0, part; done < target.length; done += part.length) {
      const at = (offset + done) % BLOCK;
      const block = this.#blocks[Math.floor((offset + done) / BLOCK) - this.#gone];
      part = block.subarray(at, Math.min(at + target.length - done, BLOCK));
      target.set(part, done);
    }
  }

  /**
   * Many texts that lie one behind the other, each behind its length (8 bytes): walking through them here takes a
   * quarter of the time that it would take Python.
   * @param {number} offset  of the first one's length
   * @param {number} count
   * @returns {{ bytes: Uint8Array, end: number } | null} all texts with a zero byte between them, and the offset behind the
   *     last; null if the file ends before
   */
  texts(offset, count) {
    for (let guess = 24 * count; guess < 1 << 28; guess *= 4) {
      const window = Math.min(guess, this.size - offset);
      const file = new Uint8Array(window);
      this.copy(offset, file);
      const bytes = new Uint8Array(window);
      const end = joinTexts(file, count, bytes);
      if (end) return { bytes: bytes.subarray(0, end - 7 * count - 1), end: offset + end };
      if (window === this.size - offset) break;
    }
    return null;
  }

  /**
   * Fills an array as copy() does, and gives up the blocks that end before the end of these bytes.
   * @param {number} offset
   * @param {Uint8Array} target
   */
  take(offset, target) {
    this.copy(offset, target);
    for (; (this.#gone + 1) * BLOCK <= offset + target.length; this.#gone++) {
      discard(/** @type {Uint8Array<ArrayBuffer>} */ (this.#blocks.shift()));
    }
  }
}

/**
 * @param {Uint8Array} file  of which the texts are the beginning
 * @param {number} count  of texts
 * @param {Uint8Array} target  where they go, a zero byte between them
 * @returns {number} how many bytes of the file they are; 0 if it ends before
 */
function joinTexts(file, count, target) {
  const lengths = new DataView(file.buffer);
  let at = 0;
  for (let number = 0, to = 0; number < count; number++) {
    if (at + 8 > file.length) return 0;
    const length = lengths.getUint32(at, true);
    const begin = at + 8;
    at = begin + length;
    if (at > file.length || lengths.getUint32(begin - 4, true) !== 0) return 0;
    // Most are so short that a call for each would take longer.
    if (length > 32) target.set(file.subarray(begin, at), to);
    else for (let i = 0; i < length; i++) target[to + i] = file[begin + i];
    to += length + 1;
  }
  return at;
}

/**
 * Frees an array's memory now, not when the browser gets round to it; browsers of before 2024 do not know how.
 * @param {Uint8Array<ArrayBuffer>} data
 */
function discard(data) {
  data.buffer.transfer?.(0);
}

/**
 * The browser's own SHA-256 works beside this thread, and many times as fast, but only for pages that came by https or
 * from this machine.
 * @param {Chunk} data
 */
async function hexDigest(data) {
  const bytes = globalThis.crypto.subtle ? new Uint8Array(await crypto.subtle.digest("SHA-256", data)) : sha256(data);
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
