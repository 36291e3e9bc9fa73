/**
 * Runs a Python program in Pyodide as any page might have it, under Node: node tests/in_pyodide.mjs PROGRAM FOLDER ...
 * Folders of this machine are put on Python's path, in their order. What the program prints is printed.
 */

import fs from "node:fs";
import path from "node:path";
import { loadPyodide } from "pyodide";

const [program, ...folders] = process.argv.slice(2);
const python = await loadPyodide({ stdout: (line) => console.log(line) });
folders.forEach((folder, number) => {
  python.mountNodeFS(`/folder${number}`, path.resolve(folder));
  python.runPython(`import sys; sys.path.append("/folder${number}")`);
});
try {
  await python.runPythonAsync(fs.readFileSync(program, "utf8"));
} catch (error) {
  console.error(String(error)); // without Pyodide's source, which Node would quote
  process.exitCode = 1;
}
