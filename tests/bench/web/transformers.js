/** transformers.js: its own generate(), greedily, on ONNX Runtime's WebAssembly. Tokens are timed by its streamer. */

import { AutoModelForCausalLM, Tensor, env } from "@huggingface/transformers";
import { repeat, serve } from "./repeat.js";

serve(async (spec) => {
  const started = performance.now();
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.useBrowserCache = false;
  env.localModelPath = spec.url;
  env.backends.onnx.wasm.numThreads = spec.threads;
  env.backends.onnx.wasm.wasmPaths = new URL(
    "/node_modules/@huggingface/transformers/node_modules/onnxruntime-web/dist/",
    spec.url,
  ).href;
  const model = await AutoModelForCausalLM.from_pretrained("onnx", { dtype: "q8", device: "wasm" });
  const load_ms = performance.now() - started;

  const integers = (values) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  let tokens = [];
  const stories = await repeat(spec, async () => {
    const times = [];
    tokens = [];
    const streamer = {
      put: (ids) => {
        times.push(performance.now());
        tokens.push(...ids[0].map(Number));
      },
      end: () => {},
    };
    const asked = performance.now();
    await model.generate({
      input_ids: integers(spec.ids),
      attention_mask: integers(spec.ids.map(() => 1)),
      max_new_tokens: spec.tokens + 1,
      do_sample: false,
      streamer,
    });
    tokens = tokens.slice(spec.ids.length); // what it streams begins with the prompt
    const [, first] = times;
    return { prefill_ms: first - asked, decode_ms: times.at(-1) - first, decoded: tokens.length - 1 };
  });
  return { load_ms, stories, tokens };
});
