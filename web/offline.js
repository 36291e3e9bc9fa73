/** The page's side of the service worker (service-worker.js), which keeps the page for when there is no network. */

import { element } from "./dom.js";

/** Milliseconds after which nobody waits any longer for what is kept to be mended. */
const MENDING = 5000;

/** Browsers hand out their rests, but for Safari. */
const atRest = globalThis.requestIdleCallback ?? ((/** @type {() => void} */ callback) => setTimeout(callback, 500));

/**
 * Has the page kept on this machine, and says when it is. To be called once nothing more is waited for. A page within
 * another's does not ask that visitor's machine for so much.
 */
export function keepForOffline() {
  if (!navigator.serviceWorker || window !== window.top) return; // none by http, nor in some private windows
  atRest(async () => {
    try {
      await navigator.serviceWorker.register("sw.js");
      await navigator.serviceWorker.ready;
      element("offline", HTMLElement).hidden = false;
    } catch {
      // The host or the browser does not want it: the page is as good as before, and promises nothing.
    }
  });
}

/** Has the service worker, if there is one, look for damage in what it keeps; resolves when what it found is gone. */
export async function mendKept() {
  const worker = navigator.serviceWorker?.controller;
  if (!worker) return;
  const { port1, port2 } = new MessageChannel();
  worker.postMessage(null, [port2]);
  await new Promise((resolve) => {
    port1.onmessage = resolve;
    setTimeout(resolve, MENDING);
  });
}
