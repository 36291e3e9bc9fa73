/** ONNX Runtime Web in a bare loop: the KV cache goes from one run's outputs to the next one's inputs. */

import * as ort from "onnxruntime-web/wasm";
import { likeliest, serve, stepByStep } from "./repeat.js";

serve(async (spec) => {
  const started = performance.now();
  ort.env.wasm.numThreads = spec.threads;
  ort.env.wasm.wasmPaths = new URL("/node_modules/onnxruntime-web/dist/", spec.url).href;
  const config = await (await fetch(`${spec.url}onnx/config.json`)).json();
  const model = await (await fetch(`${spec.url}onnx/onnx/model_quantized.onnx`)).arrayBuffer();
  const session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
  const load_ms = performance.now() - started;

  const caches = session.inputNames.filter((name) => name.startsWith("past_key_values."));
  const empty = () =>
    new ort.Tensor("float32", new Float32Array(0), [1, config.num_key_value_heads, 0, config.head_dim]);
  const integers = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  let past = {};
  const run = async (ids, total) => {
    const attention_mask = integers(new Array(total).fill(1));
    const results = await session.run({ input_ids: integers(ids), attention_mask, ...past });
    past = Object.fromEntries(caches.map((name) => [name, results[name.replace("past_key_values", "present")]]));
    return likeliest(results.logits.data);
  };
  const prefill = (ids) => {
    past = Object.fromEntries(caches.map((name) => [name, empty()]));
    return run(ids, ids.length);
  };
  const told = await stepByStep(spec, prefill, (token, position) => run([token], position + 1));
  return { load_ms, ...told };
});
