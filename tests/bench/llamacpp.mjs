/**
 * Native llama.cpp through node-llama-cpp's prebuilt library: node llamacpp.mjs SPEC
 * SPEC is JSON: {model, ids, tokens, seconds, stories, threads}. Prints one measurement as JSON. The times are the
 * library's own counters, which leave out the JavaScript and the sampling between its steps.
 */
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const spec = JSON.parse(process.argv[2]);
let log = ""; // where alone the counters can be read
const started = performance.now();
const llama = await getLlama({
  gpu: false,
  build: "never",
  logLevel: LlamaLogLevel.info,
  logger: (_, message) => (log += `${message}\n`),
});
const model = await llama.loadModel({ modelPath: spec.model });
const size = spec.ids.length + spec.tokens + 8; // two more than the story takes, and what the library keeps for itself
const context = await model.createContext({
  contextSize: size,
  batchSize: 512,
  threads: spec.threads,
  performanceTracking: true,
});
const sequence = context.getSequence();
const load_ms = performance.now() - started;

/** The counters since they were last read, which sets them to 0. */
async function timings() {
  log = "";
  await context.printTimings();
  const counter = (name, unit) => {
    const found = log.match(new RegExp(`: +${name} time = +([\\d.]+) ms / +(\\d+) ${unit}`));
    if (!found) throw new Error(`no ${name} time in llama.cpp's log: ${log}`);
    return found.slice(1).map(Number);
  };
  const [prefill_ms, prefilled] = counter("prompt eval", "tokens");
  const [decode_ms, decoded] = counter("eval", "runs");
  if (prefilled !== spec.ids.length) throw new Error(`the prompt was computed as ${prefilled} tokens`);
  return { prefill_ms, decode_ms, decoded };
}

const stories = [];
let tokens = [];
const first = performance.now();
while (stories.length < spec.stories || performance.now() - first < spec.seconds * 1000) {
  await sequence.clearHistory();
  tokens = [];
  for await (const token of sequence.evaluate(spec.ids, { temperature: 0, yieldEogToken: true })) {
    tokens.push(token);
    if (tokens.length > spec.tokens) break;
  }
  stories.push(await timings());
}
console.log(JSON.stringify({ load_ms, stories, tokens }));
process.exit(0); // without waiting for the library to take itself apart
