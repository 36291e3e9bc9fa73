/**
 * How the parts of the page arrive: from its own origin alone, never in silence, and compared with what the page was
 * built with. Whatever goes wrong is a Problem, in words.
 */

import { BLOCK, Bytes, hexDigest, isWebPage } from "./bytes.js";
import {
  SILENCE,
  anotherLength,
  brokenOff,
  elsewhere,
  notStarted,
  otherBytes,
  otherHost,
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

/** @type {RequestInit} */
const SAME_ORIGIN = { mode: "same-origin" };

/** A request, and the watch over its silence, which begins with it. */
export class Arrival {
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

  /**
   * @param {RequestInit} [how]  of the same origin, also when it is redirected, unless this says otherwise: a policy
   *     alone could be missing where this runs
   * @returns {Promise<Response>} a response whose status is fine; to a request for a range it may be 416 as well
   */
  async open(how = SAME_ORIGIN) {
    let response;
    try {
      response = await originalFetch(this.part.url, { ...how, signal: this.#controller.signal });
    } catch {
      throw this.#silence() ?? (await this.#unreachable(how));
    }
    this.#heard();
    const isAboutRange = response.status === 416 && new Headers(how.headers).has("Range");
    if (!response.ok && !isAboutRange) {
      this.#end();
      throw refused(this.name, response.status);
    }
    return response;
  }

  /**
   * A response's body as it arrives, to its end or to where it breaks off.
   * @param {Response} response
   */
  async *chunks(response) {
    const reader = /** @type {ReadableStream<Chunk>} */ (response.body).getReader();
    try {
      for (;;) {
        const { done, value } = await reader.read().catch(() => {
          throw this.#silence() ?? brokenOff(this.name);
        });
        if (done) return;
        this.#heard();
        yield value;
      }
    } finally {
      this.#end();
      reader.cancel().catch(() => {});
    }
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
    for await (const chunk of this.chunks(response)) {
      count(chunk.length);
      file.append(chunk);
      if (expected && file.size > bytes) break;
    }
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

  /**
   * What it means that there was no answer.
   * @param {RequestInit} how
   */
  async #unreachable(how) {
    if (how.mode !== "same-origin") return otherHost(this.name, new URL(this.part.url).host);
    try {
      const init = { ...how, redirect: /** @type {const} */ ("manual"), signal: this.#controller.signal };
      const { type } = await originalFetch(this.part.url, init);
      return type === "opaqueredirect" ? elsewhere(this.name) : unreachable(this.name);
    } catch {
      return unreachable(this.name);
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
  if (file.size !== bytes) return anotherLength(name, bytes, file.size);
  const same = String(await file.sha256()) === String(expected);
  return same ? null : otherBytes(name);
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

/** A URL of scripts, to be revoked once they are read. @param {Blocks[]} files */
function scriptURL(files) {
  const parts = files.flatMap((file) => file.parts());
  return URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
}

/** A downloaded file in blocks, which are released from the front as a loader takes them. */
export class Blocks extends Bytes {
  /** @type {Chunk[]} */
  #blocks = [];
  /** Blocks that have been released. */
  #gone = 0;
  size = 0;

  /** @param {Chunk} data  which this takes: it is not the caller's any more */
  append(data) {
    if (data.length === BLOCK && this.size % BLOCK === 0) {
      this.#blocks.push(data);
      this.size += BLOCK;
      return;
    }
    for (let done = 0, count; done < data.length; done += count) {
      const at = this.size % BLOCK;
      if (at === 0) this.#blocks.push(new Uint8Array(BLOCK));
      count = Math.min(data.length - done, BLOCK - at);
      this.#blocks[this.#blocks.length - 1].set(data.subarray(done, done + count), at);
      this.size += count;
    }
    discard(data);
  }

  /** Forgets all of it. */
  clear() {
    this.#blocks.forEach(discard);
    this.#blocks = [];
    this.size = 0;
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
    return isWebPage(this.parts()[0] ?? new Uint8Array());
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
 * Frees an array's memory now, not when the browser gets round to it; browsers of before 2024 do not know how.
 * @param {Uint8Array<ArrayBuffer>} data
 */
function discard(data) {
  data.buffer.transfer?.(0);
}
