/**
 * The snapshot: Python's memory as it is once Python has started and imported our package. With it the page starts
 * Python in a third of the time. The build takes it (py/builder/snapshot.mjs), the page puts it back.
 *
 * Only what differs from the memory of a Python that has not started yet is kept, in pages. The file is compressed by gzip:
 * the length of a header (4 bytes), the header (JSON), and the pages one after the other.
 */

const PAGE = 4096; // bytes

/**
 * @typedef {object} Header
 * @property {number} memory  bytes of all of it
 * @property {[number, number][]} runs  where pages are that follow each other: offset and bytes
 * @property {object} objects  the JavaScript objects that Python knows, as Pyodide describes them
 */

/**
 * @param {Uint8Array} before  the memory of a Python that has not started
 * @param {Uint8Array} after  of the same size
 * @param {object} objects
 * @returns {Uint8Array} the file, before it is compressed
 */
export function pack(before, after, objects) {
  if (before.length !== after.length)
    throw new RangeError(`memory grew from ${before.length} to ${after.length} bytes`);
  /** @type {[number, number][]} */
  const runs = [];
  for (let at = 0; at < after.length; at += PAGE) {
    if (after.subarray(at, at + PAGE).every((byte, index) => byte === before[at + index])) continue;
    const run = runs.at(-1);
    if (run && run[0] + run[1] === at) run[1] += PAGE;
    else runs.push([at, PAGE]);
  }
  /** @type {Header} */
  const header = { memory: after.length, runs, objects };
  const text = new TextEncoder().encode(JSON.stringify(header));
  /** @type {Uint8Array[]} */
  const parts = [new Uint8Array(Uint32Array.of(text.length).buffer), text];
  parts.push(...runs.map(([offset, bytes]) => after.subarray(offset, offset + bytes)));
  const file = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let end = 0;
  for (const part of parts) {
    file.set(part, end);
    end += part.length;
  }
  return file;
}

/**
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} compressed
 * @returns {Promise<ArrayBuffer>} the file
 */
export function decompress(compressed) {
  return new Response(compressed.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

/**
 * @param {ArrayBuffer} file
 * @param {Uint8Array} memory  of a Python that has not started; afterwards it has
 * @returns {object} the objects
 */
export function putBack(file, memory) {
  let from = 4 + new DataView(file).getUint32(0, true);
  /** @type {Header} */
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 4, from - 4)));
  if (memory.length !== header.memory) throw new RangeError(`${memory.length} bytes of memory, not ${header.memory}`);
  for (const [offset, bytes] of header.runs) {
    memory.set(new Uint8Array(file, from, bytes), offset);
    from += bytes;
  }
  return header.objects;
}
