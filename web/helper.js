/**
 * A helper thread of the engine (engine.js): another instance of run.wasm, in the same memory.
 *
 * Its first message says what to run. Each further one is the thread's number: it helps until that thread is not
 * wanted any more. A number that arrives while it helps waits for its turn; by then it is mostly out of date.
 */

const scope = /** @type {DedicatedWorkerGlobalScope} */ (/** @type {unknown} */ (globalThis));

scope.onmessage = (
  /** @type {MessageEvent<{ module: WebAssembly.Module, memory: WebAssembly.Memory, stackTop: number }>} */
  { data: { module, memory, stackTop } },
) => {
  const { exports } = new WebAssembly.Instance(module, { env: { memory, emscripten_notify_memory_growth() {} } });
  const { __stack_pointer, thread_main } = /** @type {Record<string, any>} */ (exports);
  __stack_pointer.value = stackTop;
  scope.onmessage = ({ data: thread }) => thread_main(thread);
  scope.postMessage("ready");
};
