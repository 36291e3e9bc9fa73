"""web/download.js, run by Node.js: a file in blocks, whatever the pieces in which it arrives, and a host's silence."""

from __future__ import annotations

import subprocess

from builder.tools import ROOT

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

// Texts behind their lengths, at once: short and long ones, more than the first guess and across blocks.
const encoder = new TextEncoder();
for (const lengths of [[0], [5, 0, 32, 33, 7], Array.from({ length: 3000 }, (_, i) => (i * 7) % 900)]) {
  const texts = lengths.map((length, i) => "abcdefgh"[i % 8].repeat(length));
  const parts = texts.flatMap((text) => {
    const length = new Uint8Array(8);
    new DataView(length.buffer).setUint32(0, text.length, true);
    return [length, encoder.encode(text)];
  });
  const before = MIB - 20;
  const whole = new Uint8Array(await new Blob([new Uint8Array(before), ...parts, "rest"]).arrayBuffer());
  const file = new Blocks();
  file.append(whole.slice());
  const found = file.texts(before, texts.length);
  assert.deepEqual(new TextDecoder().decode(found.bytes).split("\\x00"), texts);
  assert.equal(found.end, whole.length - 4);
  assert.equal(file.texts(before, texts.length + 1), null, "there is one less");
  assert.equal(file.texts(whole.length - 4, 1), null, "not even a length");
  const broken = whole.slice();
  broken[before + 7] = 1; // the length is beyond 2 ** 32
  const other = new Blocks();
  other.append(broken);
  assert.equal(other.texts(before, 1), null);
}
console.log("all is well");
"""


# A host whose bytes and a clock whose seconds come when the test says so.
SILENCE = """
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mock } from "node:test";

mock.timers.enable({ apis: ["setTimeout"] });
const settle = () => new Promise(setImmediate);
const seconds = async (count) => {
  await settle();
  for (let i = 0; i < count; i++) {
    mock.timers.tick(1000);
    await settle();
  }
};
const ended = async () => {
  while (outcome.said === "nothing") await settle(); // a hash is computed on a thread of its own
};
let host;
let outcome;
globalThis.fetch = async (url, { signal, redirect }) => {
  assert.notEqual(redirect, "manual", "there is nothing to ask about a redirect");
  const aborted = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  const answer = new Promise((resolve) => {
    host = { answer: () => resolve() };
  });
  await Promise.race([answer, aborted]);
  const body = new ReadableStream({
    start(controller) {
      host.send = (bytes) => controller.enqueue(bytes);
      host.end = () => controller.close();
      aborted.catch((error) => controller.error(error));
    },
  });
  return new Response(body);
};
const { download } = await import("./web/download.js");

const data = Uint8Array.of(1, 2, 3);
const part = { url: "x", bytes: 3, sha256: [createHash("sha256").update(data).digest("hex")] };
const start = () => {
  const outcome = { said: "nothing" };
  const say = (said) => Object.assign(outcome, { said });
  download(part, "The part", () => {}).then(() => say("arrived"), (error) => say(error.message));
  return outcome;
};

// Never answered.
outcome = start();
await seconds(14);
assert.equal(outcome.said, "nothing");
await seconds(1);
assert.match(outcome.said, /^The part does not arrive: nothing has come for 15 seconds/);

// Slow, but never silent for 15 seconds.
outcome = start();
await seconds(14);
host.answer();
for (const byte of data) {
  await seconds(14);
  host.send(Uint8Array.of(byte));
}
await seconds(14);
host.end();
await ended();
assert.equal(outcome.said, "arrived");

// Silent after the first byte.
outcome = start();
host.answer();
await seconds(1);
host.send(data.slice(0, 1));
await seconds(14);
assert.equal(outcome.said, "nothing");
await seconds(1);
assert.match(outcome.said, /nothing has come for 15 seconds/);

// A second is left to what came while the thread was busy.
outcome = start();
host.answer();
await settle();
mock.timers.tick(14_500);
host.send(data.slice());
host.end();
await ended();
assert.equal(outcome.said, "arrived");

// Where the browser lends no SHA-256 of its own.
Object.defineProperty(globalThis.crypto, "subtle", { value: undefined });
for (const [bytes, said] of [[data.slice(), /^arrived$/], [Uint8Array.of(1, 2, 4), /some of its bytes are others/]]) {
  outcome = start();
  host.answer();
  await settle();
  host.send(bytes);
  host.end();
  await ended();
  assert.match(outcome.said, said);
}
console.log("all is well");
"""


def test_a_file_in_blocks() -> None:
    run_in_node(SCRIPT)


def test_silence_is_noticed_and_slowness_is_not() -> None:
    run_in_node(SILENCE)


def run_in_node(script: str) -> None:
    command = ["node", "--input-type=module", "--eval", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "all is well\n", done.stderr
