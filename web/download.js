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
 * Streams a response straight into WebAssembly memory.
 * @param {Response} response
 * @param {string} what
 * @param {WebAssembly.Memory} memory
 * @param {number} pointer  where `size` bytes are allocated
 * @param {number} size  how many bytes the file must have
 * @param {Count} count
 */
export async function streamInto(response, what, memory, pointer, size, count) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  let filled = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw halted(what);
    });
    if (done) break;
    if (filled + value.length <= size) {
      new Uint8Array(memory.buffer, pointer + filled, value.length).set(value);
      count(value.length);
    }
    filled += value.length;
    if (filled > size) reader.cancel().catch(() => {}); // the next read is the last
  }
  if (filled !== size) {
    throw new DownloadError(
      `${what} is not the file that this page was built with: ${size} bytes were expected, and ` +
        `${filled > size ? "more came" : `only ${filled} came`}. Reload the page; it may just have been renewed.`,
    );
  }
}

/**
 * Downloads, compiles and instantiates a WebAssembly module.
 * @param {string} url
 * @param {string} what
 * @param {WebAssembly.Imports} imports
 * @param {Count} count
 * @returns {Promise<WebAssembly.Instance>}
 */
export async function instantiate(url, what, imports, count) {
  const response = await download(url, what);
  countCopy(response, count).catch(() => {}); // whatever breaks the copy breaks the original, which is awaited
  try {
    return (await instantiateStreaming.call(WebAssembly, asWasm(response), imports)).instance;
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
