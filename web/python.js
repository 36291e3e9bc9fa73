/**
 * Starts Python: Pyodide with our package in it. The page downloads what that takes, while this worker starts (bridge.js).
 */

import { loadPyodide } from "pyodide";
import { download } from "./download.js";
import { notStarted } from "./problem.js";
import { putBack } from "./snapshot.js";

/** @import { Part, Python, StartOfPython } from "./messages.js" */

const NAME = "The Python engine";

/** Where Pyodide believes its parts to be: nowhere that a browser could ask. */
const FOLDER = "python:/";

/** What it asks for there, and does not need. */
const NEITHER = [`${FOLDER}pyodide.asm.wasm`, `${FOLDER}python_stdlib.zip`];

/** Where Python looks for its standard library. */
const LIBRARY = "/lib/python314.zip";

/** Where it looks for modules of ours that came later. */
const MODULES = "/lib/fabella.zip";

/**
 * @param {Python["info"]} info
 * @param {StartOfPython} start
 * @param {Promise<unknown>} idle  before which Python is not to keep this thread busy
 * @returns {Promise<any>} Pyodide, with the package `fabella`
 */
export async function startPython(info, start, idle) {
  const python = await loadPyodideFrom(info, start, idle).catch((error) => {
    throw notStarted(NAME, error);
  });
  python.pyimport("random").seed(); // or chance would be the snapshot's
  return python;
}

/**
 * Downloads Python's standard library. Before it is there, only those of its modules can be imported that are in the
 * snapshot: all that telling needs.
 * @param {any} python
 * @param {Part} stdlib  its URL is absolute
 */
export async function completePython(python, stdlib) {
  const library = await download(stdlib, `${NAME}’s library`, () => {});
  python.FS.writeFile(LIBRARY, library.toBytes());
}

/**
 * Downloads modules of ours that are not in the snapshot. Python has its standard library by then.
 * @param {any} python
 * @param {Part} modules  a zip; its URL is absolute
 */
export async function addModules(python, modules) {
  const file = await download(modules, `A further part of ${NAME.toLowerCase()}`, () => {});
  python.FS.writeFile(MODULES, file.toBytes());
  python.pyimport("fabella").__path__.append(`${MODULES}/fabella`); // Python imports from zips
}

/**
 * Pyodide asks for its parts by fetch() and WebAssembly.instantiateStreaming(): here it gets them from us, and no others.
 * @param {Python["info"]} info
 * @param {StartOfPython} start
 * @param {Promise<unknown>} idle
 */
async function loadPyodideFrom(info, { module, snapshot }, idle) {
  const { fetch } = globalThis;
  const { instantiateStreaming } = WebAssembly;
  globalThis.fetch = async (url) => {
    if (NEITHER.includes(String(url))) return new Response();
    throw new Error(`it asks for ${url}`);
  };
  WebAssembly.instantiateStreaming = async (_response, imports) => {
    await idle;
    return { module, instance: await WebAssembly.instantiate(module, imports) };
  };
  const options = {
    indexURL: FOLDER,
    packageBaseUrl: FOLDER,
    lockFileContents: { info, packages: {} }, // what it would otherwise fetch as pyodide-lock.json
    _loadSnapshot: new Uint8Array(), // there is one, of our own making
    createPyodideModule: async (/** @type {any} */ settings) => {
      const created = await /** @type {any} */ (globalThis).createPyodideModule(settings); // pyodide.asm.mjs
      settings.API.restoreSnapshot = () => restore(created, snapshot);
      return created;
    },
  };
  try {
    // @ts-expect-error: Pyodide's types ask for all of a lock file
    return await loadPyodide(options);
  } finally {
    globalThis.fetch = fetch;
    WebAssembly.instantiateStreaming = instantiateStreaming;
  }
}

/**
 * Puts the snapshot into Python's memory, but for the one thing there that depends on the browser: how Python calls C
 * functions with another number of parameters than they have. Pyodide knows a fast way, which iOS lacks.
 * @param {any} created  what pyodide.asm.mjs has made
 * @param {ArrayBuffer} snapshot
 */
function restore({ HEAPU8, HEAP32, __PyRuntime, __PyEM_EMSCRIPTEN_TRAMPOLINE_OFFSET }, snapshot) {
  const place = (__PyRuntime + HEAP32[__PyEM_EMSCRIPTEN_TRAMPOLINE_OFFSET / 4]) / 4;
  const trampoline = HEAP32[place];
  const objects = putBack(snapshot, HEAPU8);
  HEAP32[place] = trampoline;
  return objects;
}
