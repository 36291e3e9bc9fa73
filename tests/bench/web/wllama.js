/** wllama: llama.cpp in a worker of its own. Tokens are timed as they reach the page. */

import { Wllama } from "@wllama/wllama";
import { repeat } from "./repeat.js";

export async function wllama(spec) {
  const started = performance.now();
  const engine = new Wllama(
    { default: new URL("/node_modules/@wllama/wllama/esm/wasm/wllama.wasm", location.href).href },
    { suppressNativeLog: true },
  );
  const model = await (await fetch(`${spec.url}model.gguf`)).blob();
  await engine.loadModel([model], {
    n_ctx: spec.context,
    n_batch: 512,
    n_threads: spec.threads,
    n_gpu_layers: 0,
    n_parallel: 1,
  });
  const load_ms = performance.now() - started;

  let text = "";
  const stories = await repeat(spec, async () => {
    text = "";
    let first = 0;
    let timings = {};
    const asked = performance.now();
    await engine.createCompletion({
      prompt: spec.text,
      max_tokens: spec.tokens + 1,
      temperature: 0,
      cache_prompt: false,
      stream: true,
      onData: (chunk) => {
        first ||= performance.now();
        text += chunk.choices[0]?.text ?? "";
        timings = chunk.timings ?? timings;
      },
    });
    const done = performance.now();
    if (timings.prompt_n !== spec.ids.length)
      throw new Error(`the prompt is ${timings.prompt_n} tokens here, not ${spec.ids.length}`);
    return { prefill_ms: first - asked, decode_ms: done - first, decoded: timings.predicted_n - 1 };
  });
  return { load_ms, stories, text };
}
