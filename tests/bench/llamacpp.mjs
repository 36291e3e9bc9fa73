/**
 * Native llama.cpp through node-llama-cpp's prebuilt library: node llamacpp.mjs SPEC
 * SPEC is JSON: {model, ids, tokens, seconds, stories, threads}. Prints one measurement as JSON.
 */
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const spec = JSON.parse(process.argv[2]);
const started = performance.now();
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: spec.model });
const size = spec.ids.length + spec.tokens + 8; // two more than the story takes, and what the library keeps for itself
const context = await model.createContext({ contextSize: size, batchSize: 512, threads: spec.threads });
const sequence = context.getSequence();
const load_ms = performance.now() - started;

const stories = [];
let tokens = [];
const first = performance.now();
while (stories.length < spec.stories || performance.now() - first < spec.seconds * 1000) {
  await sequence.clearHistory();
  tokens = [];
  const start = performance.now();
  let prefilled = 0;
  for await (const token of sequence.evaluate(spec.ids, { temperature: 0, yieldEogToken: true })) {
    tokens.push(token);
    if (tokens.length === 1) prefilled = performance.now();
    if (tokens.length > spec.tokens) break;
  }
  const done = performance.now();
  stories.push({ prefill_ms: prefilled - start, decode_ms: done - prefilled, decoded: tokens.length - 1 });
}
console.log(JSON.stringify({ load_ms, stories, tokens }));
process.exit(0); // without waiting for the library to take itself apart
