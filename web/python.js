/**
 * Starts Python: Pyodide, its standard library and our own package, all of which this page downloads itself.
 */

import { loadPyodide } from "pyodide";
import { download, downloadModule, downloadScript } from "./download.js";
import { notStarted } from "./problem.js";

/** @import { Python } from "./messages.js" */
/** @import { Count } from "./download.js" */

const NAME = "The Python engine";

/** Where Pyodide believes its parts to be: nowhere that a browser could ask. */
const FOLDER = "python:/";

/** Where Python looks for packages. */
const PACKAGES = "/lib/python3.14/site-packages";

/**
 * @param {Python} parts  their URLs are absolute
 * @param {Count} count
 * @param {Promise<unknown>} idle  before which Python, once it is downloaded, is not to keep this thread busy
 * @returns {Promise<any>} Pyodide, with the package `fabella`
 */
export async function startPython({ info, script, wasm, stdlib, program, chat }, count, idle) {
  const factory = downloadScript(script, `${NAME}’s script`, count);
  const library = download(stdlib, `${NAME}’s library`, count);
  const modules = [program, ...(chat ? [chat] : [])].map((part) => download(part, "The storyteller’s program", count));
  const module = downloadModule(wasm, NAME, count);
  const [python, ...packed] = await Promise.all([loadPyodideFrom(info, factory, module, library, idle), ...modules]);
  for (const zip of packed) python.unpackArchive(zip.toBytes(), "zip", { extractDir: PACKAGES });
  await (
    await module
  ).arrived;
  return python;
}

/**
 * Pyodide asks for its parts by fetch() and WebAssembly.instantiateStreaming(), and, as build.py has changed it, takes
 * its script from `pyodideScript`: here it gets them from us, and no others.
 * When one fails it never hears of it, for it would not tell.
 * @param {Record<string, string>} info
 * @param {Promise<unknown>} factory  pyodide.asm.mjs
 * @param {ReturnType<typeof downloadModule>} module
 * @param {ReturnType<typeof download>} library
 * @param {Promise<unknown>} idle
 */
async function loadPyodideFrom(info, factory, module, library, idle) {
  const { fetch } = globalThis;
  const { instantiateStreaming } = WebAssembly;
  /** @type {(error: unknown) => void} */
  let fail = () => {};
  /** @type {Promise<never>} */
  const failure = new Promise((_, reject) => {
    fail = reject;
  });
  for (const part of [factory, library, module.then(({ arrived }) => arrived)]) part.catch(fail);
  /** @template T @param {Promise<T>} promise @returns {Promise<T>} which is never rejected */
  const orNever = (promise) => promise.catch((error) => (fail(error), new Promise(() => {})));

  /** @type {Record<string, () => Promise<Response>>} */
  const responses = {
    "pyodide.asm.wasm": async () => (await module).response,
    "python_stdlib.zip": async () => new Response((await library).toBytes()),
  };
  globalThis.fetch = (url) => {
    const asked = responses[String(url).slice(FOLDER.length)];
    return orNever(asked ? asked() : Promise.reject(notStarted(NAME, `it asks for ${url}`)));
  };
  WebAssembly.instantiateStreaming = async (_response, imports) =>
    orNever(Promise.all([module.then((arriving) => arriving.instantiate(imports ?? {})), idle]).then(([made]) => made));
  Object.assign(globalThis, { pyodideScript: factory });
  const lockFileContents = { info, packages: {} }; // what it would otherwise fetch as pyodide-lock.json
  // @ts-expect-error: Pyodide's types ask for all of a lock file
  const loaded = loadPyodide({ indexURL: FOLDER, packageBaseUrl: FOLDER, lockFileContents });
  try {
    return await Promise.race([loaded.catch((error) => Promise.reject(notStarted(NAME, error))), failure]);
  } finally {
    globalThis.fetch = fetch;
    WebAssembly.instantiateStreaming = instantiateStreaming;
  }
}
