/**
 * How long the page's Python takes over a model file's vocabulary: node tests/vocabulary.mjs MODEL. Prints, as JSON, the
 * milliseconds of reading the metadata and making the tokenizer of it, and of encoding 10,000 characters, five times each.
 */

import fs from "node:fs";
import { fileURLToPath } from "node:url";
import { loadPyodide } from "pyodide";
import { Blocks } from "../web/download.js";

const MEASURE = `
import json, time
from fabella import gguf, vocabulary
from fabella.hosts import BrowserFile

TEXT = ("Once upon a time, there was a little girl named Lily. It's 2026! She loved 12 things; " * 120)[:10000]

def milliseconds(do):
    began = time.perf_counter()
    result = do()
    return 1000 * (time.perf_counter() - began), result

def read():
    reader = gguf._Reader(BrowserFile(blocks))
    return vocabulary.tokenizer_of(gguf._read_metadata(reader, gguf._read_header(reader)[1]))

load, encode = [], []
for _ in range(5):
    took, tokenizer = milliseconds(read)
    load.append(took)
    tokenizer.encode("a word")  # what is made ready with the first
    encode.append(milliseconds(lambda: tokenizer.encode(TEXT))[0])
json.dumps({"tokens": len(tokenizer), "load": load, "encode": encode})
`;

const blocks = new Blocks();
for await (const chunk of fs.createReadStream(process.argv[2], { highWaterMark: 1 << 20 })) {
  blocks.append(new Uint8Array(chunk)); // a copy, which it takes
}
const python = await loadPyodide();
python.mountNodeFS("/py", fileURLToPath(new URL("../py", import.meta.url)));
python.runPython("import sys; sys.path.insert(0, '/py')");
python.globals.set("blocks", blocks);
console.log(python.runPython(MEASURE));
