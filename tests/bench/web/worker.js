/**
 * Starts a module in a worker and waits until it listens. What asks the browser for the number of cores is told
 * `threads`, so that it starts no more than the measurement is for.
 */
export async function startWorker(url, threads) {
  const source = `
    Object.defineProperty(navigator, "hardwareConcurrency", { value: ${threads} });
    await import(${JSON.stringify(url)});
    postMessage("started");`;
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
  await new Promise((resolve, reject) => {
    worker.onmessage = resolve;
    worker.onerror = (event) => reject(new Error(event.message));
  });
  return worker;
}
