/**
 * Downloads, watched: bytes are counted as they arrive, and what goes wrong is said in words.
 */

/** A download that failed; its message is meant for the visitor. */
export class DownloadError extends Error {}

/** @typedef {(bytes: number) => void} Count  told of every chunk that arrives */

const { fetch: originalFetch } = globalThis;
const { instantiateStreaming } = WebAssembly;

/**
 * @param {RequestInfo | URL} url
 * @param {string} what  the file's name as a sentence starts with it: "The model"
 * @param {RequestInit} [init]
 * @returns {Promise<Response>} a response whose status is fine
 */
export async function download(url, what, init) {
  let response;
  try {
    response = await originalFetch(url, init);
  } catch {
    throw new DownloadError(`${what} could not be downloaded. Check your connection, then try again.`);
  }
  if (!response.ok) {
    const problem = response.status === 404 ? "it is not there (404)" : `the server answers ${response.status}`;
    throw new DownloadError(`${what} could not be downloaded: ${problem}. Try again in a moment.`);
  }
  return response;
}

/**
 * Bytes of a block: many times what arrives at once. Browsers give the memory of large arrays back as soon as these are
 * no more, while that of small ones stays theirs.
 */
const BLOCK = 1 << 20;

/** A downloaded file in blocks, which are given up from the front as a loader takes them. */
export class Blocks {
  /** @type {Uint8Array<ArrayBuffer>[]} */
  #blocks = [];
  /** Blocks that have been given up. */
  #gone = 0;
  /** Bytes of the whole file. */
  size = 0;

  /** @param {Uint8Array<ArrayBuffer>} data  which this takes: it is empty afterwards */
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
   * The same, and gives up the blocks that end before the end of these bytes.
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

/**
 * Downloads the rest of a response.
 * @param {Response} response
 * @param {string} what
 * @param {number} size  how many bytes the file must have
 * @param {Count} count
 */
export async function collect(response, what, size, count) {
  const reader = /** @type {ReadableStream<Uint8Array<ArrayBuffer>>} */ (response.body).getReader();
  const file = new Blocks();
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw halted(what);
    });
    if (done) break;
    count(value.length);
    file.append(value);
    if (file.size > size) reader.cancel().catch(() => {}); // the next read is the last
  }
  if (file.size !== size) {
    throw new DownloadError(
      `${what} is not the file that this page was built with: ${size} bytes were expected, and ` +
        `${file.size > size ? "more came" : `only ${file.size} came`}. Reload the page; it may just have been renewed.`,
    );
  }
  return file;
}

/**
 * Downloads, compiles and instantiates a WebAssembly module.
 * @param {string} url
 * @param {string} what
 * @param {WebAssembly.Imports} imports
 * @param {Count} count
 * @returns {Promise<WebAssembly.WebAssemblyInstantiatedSource>}
 */
export async function instantiate(url, what, imports, count) {
  const response = await download(url, what);
  countCopy(response, count).catch(() => {}); // whatever breaks the copy breaks the original, which is awaited
  try {
    return await instantiateStreaming.call(WebAssembly, asWasm(response), imports);
  } catch (error) {
    throw notStarted(what, error);
  }
}

/**
 * Watches what a loader that fetches for itself (Pyodide) downloads and compiles, until `stop` is called. The loader
 * never hears of a failure, for it would not tell: await `failure` beside it, which rejects then and never resolves.
 * @param {string} what
 * @param {Count} count
 */
export function watchLoader(what, count) {
  /** @type {(reason: unknown) => void} */
  let fail = () => {};
  /** @type {Promise<never>} */
  const failure = new Promise((_, reject) => {
    fail = reject;
  });
  globalThis.fetch = async (url, init) => {
    try {
      const response = await download(url, what, init);
      countCopy(response, count).catch(() => fail(halted(what)));
      return asWasm(response);
    } catch (error) {
      fail(error);
      return new Promise(() => {});
    }
  };
  WebAssembly.instantiateStreaming = async (source, imports) => {
    try {
      return await instantiateStreaming.call(WebAssembly, source, imports);
    } catch (error) {
      fail(notStarted(what, error));
      return new Promise(() => {});
    }
  };
  const stop = () => {
    globalThis.fetch = originalFetch;
    WebAssembly.instantiateStreaming = instantiateStreaming;
  };
  return { failure, stop };
}

/**
 * Counts the bytes of a response that somebody else reads. (A copy is counted because browsers keep compiled
 * WebAssembly only for responses that come to the compiler as the network gave them.)
 * @param {Response} response
 * @param {Count} count
 */
async function countCopy(response, count) {
  const reader = response.clone().body?.getReader();
  for (;;) {
    const chunk = await reader?.read();
    if (!chunk || chunk.done) return;
    count(chunk.value.length);
  }
}

/**
 * Browsers compile WebAssembly as it streams only if the server names its type, which not every static server does.
 * @param {Response} response
 */
function asWasm(response) {
  const named = response.headers.get("Content-Type") === "application/wasm";
  if (named || !new URL(response.url).pathname.endsWith(".wasm")) return response;
  return new Response(response.body, { headers: { "Content-Type": "application/wasm" } });
}

/** @param {string} what */
const halted = (what) =>
  new DownloadError(`${what} stopped arriving halfway. Check your connection, then try again.`);

/**
 * @param {string} what
 * @param {unknown} error  what the browser says
 */
export function notStarted(what, error) {
  const reason = error instanceof Error ? error.message : String(error);
  return new DownloadError(`${what} did not start. Try again; if that does not help, try a newer browser. (${reason})`);
}
