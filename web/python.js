/**
 * Starts Python: Pyodide with our package in it, all of which this page downloads itself.
 */

import { loadPyodide } from "pyodide";
import { download, downloadModule, downloadScript } from "./download.js";
import { notStarted } from "./problem.js";
import { unpack } from "./snapshot.js";

/** @import { Python } from "./messages.js" */
/** @import { Count } from "./download.js" */

const NAME = "The Python engine";

/** Where Pyodide believes its parts to be: nowhere that a browser could ask. */
const FOLDER = "python:/";

/** Where Python looks for its standard library. */
const LIBRARY = "/lib/python314.zip";

/**
 * @param {Python} parts  their URLs are absolute
 * @param {Count} count
 * @returns {Promise<any>} Pyodide, with the package `fabella`
 */
export async function startPython({ info, script, wasm, snapshot, stdlib }, count) {
  const factory = downloadScript(script, `${NAME}’s script`, count);
  const module = downloadModule(wasm, NAME, count);
  const program = download(snapshot, "The storyteller’s program", count).then((file) => unpack(file.toStream()));
  const library = download(stdlib, `${NAME}’s library`, count);
  const python = await loadPyodideFrom(info, factory, module, program);
  python.FS.writeFile(LIBRARY, (await library).toBytes());
  python.pyimport("random").seed(); // or chance would be the snapshot's
  await (
    await module
  ).arrived;
  return python;
}

/**
 * Pyodide asks for its parts by fetch() and WebAssembly.instantiateStreaming(): here it gets them from us, and no others.
 * When one fails it never hears of it, for it would not tell.
 * @param {Record<string, string>} info
 * @param {Promise<any>} factory  pyodide.asm.mjs
 * @param {ReturnType<typeof downloadModule>} module
 * @param {ReturnType<typeof unpack>} program
 */
async function loadPyodideFrom(info, factory, module, program) {
  const { fetch } = globalThis;
  const { instantiateStreaming } = WebAssembly;
  /** @type {(error: unknown) => void} */
  let fail = () => {};
  /** @type {Promise<never>} */
  const failure = new Promise((_, reject) => {
    fail = reject;
  });
  for (const part of [factory, program, module.then(({ arrived }) => arrived)]) part.catch(fail);
  /** @template T @param {Promise<T>} promise @returns {Promise<T>} which is never rejected */
  const orNever = (promise) => promise.catch((error) => (fail(error), new Promise(() => {})));

  /** @type {Record<string, () => Promise<Response>>} */
  const responses = {
    "pyodide.asm.wasm": async () => (await module).response,
    "python_stdlib.zip": async () => new Response(), // nothing in it is needed for the start
  };
  globalThis.fetch = (url) => {
    const asked = responses[String(url).slice(FOLDER.length)];
    return orNever(asked ? asked() : Promise.reject(notStarted(NAME, `it asks for ${url}`)));
  };
  WebAssembly.instantiateStreaming = async (_response, imports) =>
    orNever(module.then((arriving) => arriving.instantiate(imports ?? {})));
  const options = {
    indexURL: FOLDER,
    packageBaseUrl: FOLDER,
    lockFileContents: { info, packages: {} }, // what it would otherwise fetch as pyodide-lock.json
    _loadSnapshot: new Uint8Array(), // there is one, but Pyodide would wait for it before all else
    createPyodideModule: async (/** @type {any} */ settings) => {
      const created = await (await orNever(factory)).default(settings);
      const putBack = await orNever(program);
      settings.API.restoreSnapshot = () => restore(created, putBack);
      return created;
    },
  };
  // @ts-expect-error: Pyodide's types ask for all of a lock file
  const loaded = loadPyodide(options);
  try {
    return await Promise.race([loaded.catch((error) => Promise.reject(notStarted(NAME, error))), failure]);
  } finally {
    globalThis.fetch = fetch;
    WebAssembly.instantiateStreaming = instantiateStreaming;
  }
}

/**
 * Puts the snapshot into Python's memory, but for the one thing there that depends on the browser: how Python calls C
 * functions with another number of parameters than they have. Pyodide knows a fast way, which iOS lacks.
 * @param {any} created  what pyodide.asm.mjs has made
 * @param {Awaited<ReturnType<typeof unpack>>} putBack
 */
function restore({ HEAPU8, HEAP32, __PyRuntime, __PyEM_EMSCRIPTEN_TRAMPOLINE_OFFSET }, putBack) {
  const place = (__PyRuntime + HEAP32[__PyEM_EMSCRIPTEN_TRAMPOLINE_OFFSET / 4]) / 4;
  const trampoline = HEAP32[place];
  const objects = putBack(HEAPU8);
  HEAP32[place] = trampoline;
  return objects;
}
