/**
 * Fabella as it is published: the built page's own worker, asked by the page's own messages, so that all the driver's
 * work and the messages are in the figures. The worker tells when a story is done, not when its prompt is: the prompt
 * is measured by a story that ends with it, decoding from the first token, which comes at once, to the end.
 */

import { repeat } from "./repeat.js";
import { startWorker } from "./worker.js";

export async function fabella(spec) {
  const base = new URL("/dist/", location.href).href;
  const index = new DOMParser().parseFromString(await (await fetch(base)).text(), "text/html");
  const written = index.querySelector("#assets")?.textContent;
  if (!written) throw new Error("dist/ holds no built page");
  const assets = JSON.parse(written);
  const model = new URL(`${spec.url}model.gguf`, location.href).href;

  const part = { ...spec.part, url: model, name: "model", file: "model.gguf" }; // as a page's build writes it

  const started = performance.now();
  const ask = ({ url }) => fetch(new URL(url, base));
  const [python, ...scripts] = await Promise.all([
    startOfPython(assets.python, ask),
    ...[assets.python.script, assets.worker].map(async (part) => (await ask(part)).text()),
  ]);
  const script = URL.createObjectURL(new Blob(scripts, { type: "text/javascript" }));
  const worker = await startWorker(script, spec.threads);
  let steps = [];
  let first = 0; // when the first token after the prompt was there
  const until = (type) =>
    new Promise((resolve, reject) => {
      worker.onerror = (event) => reject(new Error(event.message));
      worker.onmessage = ({ data: message }) => {
        if (message.type === "error") reject(new Error(message.message));
        if (message.type === "steps") {
          steps.push(...message.steps);
          if (!first && told().length) first = performance.now();
        }
        if (message.type === type) resolve(message);
      };
    });
  const told = () => steps.filter((step) => !step.from_prompt);
  worker.postMessage({ type: "load", id: 0, assets, base, source: { kind: "offer", part }, python }, [python.snapshot]);
  await until("ready");
  const load_ms = performance.now() - started;
  const { simd, threads } = await until("engine");

  let id = 0;
  const tell = async (length, prompt = spec.text) => {
    steps = [];
    first = 0;
    const settings = { temperature: 0, top_p: 0.9, top_k: 0, seed: "1", length };
    const asked = performance.now();
    worker.postMessage({ type: "tell", id: ++id, prompt, settings });
    await until("done");
    return performance.now() - asked;
  };
  const stories = await repeat(spec, async () => {
    await tell(1, ""); // or else the prompt would be there already; now its first token is, BOS
    const prefill_ms = await tell(spec.ids.length);
    const given = steps.filter((step) => step.from_prompt).map((step) => step.token);
    // BOS is no step.
    if (![spec.ids, spec.ids.slice(1)].some((ids) => String(ids) === String(given)))
      throw new Error(`the prompt's tokens are not the same here`);
    const asked = performance.now();
    const decode_ms = asked + (await tell(spec.ids.length + spec.tokens)) - first;
    return { prefill_ms, decode_ms, decoded: told().length - 1 }; // the first token comes of the prompt
  });
  return { load_ms, simd, threads, stories, tokens: told().map((step) => step.token) };
}

/** What the page hands its worker for Python to start: web/bridge.js. */
async function startOfPython({ wasm, snapshot }, ask) {
  const decompress = async () => {
    const { body } = await ask(snapshot);
    return new Response(body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  };
  const [module, bytes] = await Promise.all([WebAssembly.compileStreaming(ask(wasm)), decompress()]);
  return { module, snapshot: bytes };
}
