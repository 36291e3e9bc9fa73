/** REF: the plain forward pass of tests/bench/plain.c. */

import { serve, stepByStep } from "./repeat.js";

serve(async (spec) => {
  const started = performance.now();
  const [{ instance }, file] = await Promise.all([
    WebAssembly.instantiateStreaming(fetch(new URL("/built/plain.wasm", spec.url)), {
      env: { emscripten_notify_memory_growth() {} },
    }),
    fetch(`${spec.url}plain.bin`).then((response) => response.arrayBuffer()),
  ]);
  const { memory, _initialize, plain_config, plain_new, plain_forward } = instance.exports;
  _initialize();
  const header = 40;
  const config = plain_config();
  new Uint8Array(memory.buffer, config, header).set(new Uint8Array(file, 0, header));
  const weights = plain_new() >>> 0;
  if (!weights) throw new Error("the weights do not fit into memory");
  new Uint8Array(memory.buffer, weights, file.byteLength - header).set(new Uint8Array(file, header));
  const load_ms = performance.now() - started;

  const prefill = (ids) => ids.reduce((_, id, at) => plain_forward(id, at, Number(at === ids.length - 1)), 0);
  const told = await stepByStep(spec, prefill, (token, position) => plain_forward(token, position, 1));
  return { load_ms, ...told };
});
