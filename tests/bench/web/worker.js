/** Starts workers, and knows how much WebAssembly memory they hold: each notes its memories and tells when asked. */

const CHANNEL = "wasm memory";

/** Put before every worker's own script. */
const HOOK = `{
  const memories = new Set();
  const note = (exports) => {
    for (const value of Object.values(exports ?? {})) if (value instanceof WebAssembly.Memory) memories.add(value);
  };
  for (const name of ["instantiate", "instantiateStreaming"]) {
    const original = WebAssembly[name].bind(WebAssembly);
    WebAssembly[name] = async (source, imports) => {
      const result = await original(source, imports);
      for (const given of Object.values(imports ?? {})) note(given);
      note((result.instance ?? result).exports);
      return result;
    };
  }
  const channel = new BroadcastChannel("${CHANNEL}");
  channel.onmessage = ({ data }) => {
    if (data === "how much?") channel.postMessage(Array.from(memories, (memory) => memory.buffer.byteLength));
  };
}`;

// Every worker here is made of a script's text, the peers' own ones too.
const createObjectURL = URL.createObjectURL.bind(URL);
URL.createObjectURL = (blob) =>
  createObjectURL(/javascript/.test(blob.type) ? new Blob([HOOK, "\n", blob], { type: blob.type }) : blob);

/** Starts a module in a worker and waits until it listens. */
export async function startWorker(url) {
  const source = `await import(${JSON.stringify(url)}); postMessage("started");`;
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
  await new Promise((resolve, reject) => {
    worker.onmessage = resolve;
    worker.onerror = (event) => reject(new Error(event.message));
  });
  return worker;
}

/** Bytes of every WebAssembly memory in this page's workers; those that do not answer within a second do not count. */
export async function memories() {
  const channel = new BroadcastChannel(CHANNEL);
  const sizes = [];
  channel.onmessage = ({ data }) => sizes.push(...data);
  channel.postMessage("how much?");
  await new Promise((resolve) => setTimeout(resolve, 1000));
  channel.close();
  return sizes;
}
