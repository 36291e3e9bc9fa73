/**
 * Takes the snapshot that the page starts Python with (web/snapshot.js): node snapshot.mjs SCRIPT STDLIB PROGRAM MODULES
 * TARGET. SCRIPT is the page's pyodide.asm.mjs; STDLIB and PROGRAM are zips; MODULES are imported, separated by commas.
 */

import crypto from "node:crypto";
import fs from "node:fs";
import { pathToFileURL } from "node:url";
import { loadPyodide } from "pyodide";
import { pack } from "../../web/snapshot.js";

const [script, stdLibURL, program, modules, target] = process.argv.slice(2);

// The same inputs make the same snapshot. What Python would find by chance here, it looks for anew in the page.
Date.now = () => 0;
performance.now = () => 0;
crypto.randomFillSync = (/** @type {Uint8Array} */ bytes) => bytes.fill(0);

await import(pathToFileURL(script).href);
let before;
const python = await loadPyodide({
  _makeSnapshot: true,
  _sysExecutable: "./this.program", // as in the page; it would be the path of this script
  stdLibURL,
  createPyodideModule: (settings) => {
    settings.onRuntimeInitialized = () => (before = settings.HEAPU8.slice()); // Python starts after that
    return createPyodideModule(settings);
  },
});
python.unpackArchive(new Uint8Array(fs.readFileSync(program)), "zip", { extractDir: python._api.sitepackages });
python.runPython(`
    import gc, importlib, sys
    sys.path_importer_cache.clear()  # by this clock the folder has not changed
    for module in ${JSON.stringify(modules.split(","))}:
        importlib.import_module(module)
    sys.path_importer_cache.clear()  # in the page the folder is empty
    del gc, importlib, module, sys`);
python.runPython("__import__('gc').collect()");
const { hiwireKeys, immortalKeys } = python._api.serializeHiwireState();
const snapshot = pack(before, python._module.HEAPU8, { hiwireKeys, immortalKeys });

// Compressed by Python's zlib, whose output does not depend on this machine.
const compress = python.runPython("import gzip; lambda data: gzip.compress(data.to_bytes(), 9, mtime=0)");
fs.writeFileSync(target, compress(snapshot).toJs());
