/** The read bandwidth of WebAssembly over `spec.bytes`: {bytes, gb_per_s: of each pass over them}. */

import { serve } from "./repeat.js";

serve(async (spec) => {
  const { instance } = await WebAssembly.instantiateStreaming(fetch(new URL("/built/roofline.wasm", spec.url)), {
    env: { emscripten_notify_memory_growth() {} },
  });
  instance.exports._initialize();
  const bytes = Math.ceil(spec.bytes / 256) * 256;
  const data = instance.exports.roofline_new(bytes) >>> 0;
  if (!data) throw new Error(`no room for ${bytes} bytes`);
  const passes = Math.max(1, Math.round(100e6 / bytes)); // long enough for a browser's clock
  const gb_per_s = [];
  const started = performance.now();
  while (performance.now() - started < spec.seconds * 1000) {
    const before = performance.now();
    for (let i = 0; i < passes; i++) instance.exports.roofline_read(data, bytes);
    gb_per_s.push((passes * bytes) / (performance.now() - before) / 1e6);
  }
  return { bytes, gb_per_s };
});
