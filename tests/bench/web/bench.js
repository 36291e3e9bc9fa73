/**
 * The benchmark's page: one measurement, asked for by tests/bench/browser.py as `measure(spec)`.
 *
 * spec: {engine, url: where the model's folder is, ids, text: the prompt, tokens: to compute after it, context: tokens,
 * stories, seconds: tell at least so many, for at least so long, threads: at most so many}. The answer: {load_ms,
 * stories: [{prefill_ms, decode_ms, decoded}], tokens or text: of the last story}, and of Fabella {simd, threads}, the
 * build and the threads that it chose.
 */

import { fabella } from "./fabella.js";
import { startWorker } from "./worker.js";

/** Fabella and wllama bring a worker of their own; the others run in one that is made here. */
globalThis.measure = async (spec) => {
  const script = new URL(`${spec.engine}.js`, import.meta.url).href;
  if (spec.engine === "fabella") return fabella(spec);
  if (spec.engine === "wllama") return (await import(script)).wllama(spec);
  const worker = await startWorker(script, spec.threads);
  return new Promise((resolve, reject) => {
    worker.onerror = (event) => reject(new Error(event.message));
    worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data));
    worker.postMessage(spec);
  });
};

document.title = "ready";
