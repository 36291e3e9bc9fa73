"""web/download.js, run by Node.js: a downloaded file in blocks, whatever the pieces in which it arrives."""

from __future__ import annotations

import subprocess

import build

# Pieces of every kind of length, reads at every kind of place; numbers that are random, but the same each time.
SCRIPT = """
import assert from "node:assert/strict";
import { Blocks } from "./web/download.js";

const MIB = 1 << 20;
let state = 1;
const random = (below) => Math.floor(((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32) * below);

for (const size of [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB, 5 * MIB + 12345]) {
  const expected = Uint8Array.from({ length: size }, (_, i) => (i * 31 + (i >> 8)) & 255);
  const file = new Blocks();
  for (let at = 0, end; at < size; at = end) {
    end = Math.min(size, at + [1, 100, 65536, MIB, 2 * MIB + 7][random(5)]);
    file.append(expected.slice(at, end));
  }
  assert.equal(file.size, size);

  const read = (how, offset, count) => {
    const target = new Uint8Array(count);
    file[how](offset, target);
    assert.deepEqual(target, expected.subarray(offset, offset + count));
  };
  for (let i = 0; i < 50; i++) {
    const offset = random(size + 1);
    read("copy", offset, random(Math.min(size - offset, 2 * MIB) + 1));
  }
  assert.throws(() => file.copy(size, new Uint8Array(1)), RangeError);

  // From front to back, with gaps; what lies ahead can be read meanwhile, what lies behind is given up block by block.
  for (let at = 0, count; at < size; at += count + random(100)) {
    count = Math.min(size - at, random(MIB) + 1);
    read("take", at, count);
    read("copy", at + count, Math.min(size - at - count, 1000));
    const block = Math.floor((at + count) / MIB) * MIB;
    if (block > 0) assert.throws(() => file.copy(block - 1, new Uint8Array(1)), RangeError);
    if (block < size) read("copy", block, 1);
  }
}
console.log("all is well");
"""


def test_a_file_in_blocks() -> None:
    command = ["node", "--input-type=module", "--eval", SCRIPT]
    done = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "all is well\n", done.stderr
