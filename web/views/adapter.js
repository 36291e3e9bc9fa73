/** The adapter that the model speaks through, and a way to take it off and put it back. */

import { element } from "../dom.js";
import { current, watch } from "../state.js";

/** @param {{ useAdapter: (on: boolean) => void }} actions */
export function mountAdapter({ useAdapter }) {
  const line = element("adapter", HTMLElement);
  const says = element("adapter-says", HTMLElement);
  const button = element("adapter-switch", HTMLButtonElement);
  watch(
    ({ adapter, worker }) => [adapter, worker],
    (adapter, worker) => {
      if (!adapter) {
        if (worker !== "loading") line.hidden = true; // until then the page says what it was built with
        return;
      }
      line.hidden = false;
      says.textContent = adapter.on
        ? `It speaks through the adapter “${adapter.name}”.`
        : `The adapter “${adapter.name}” is off: it speaks in its own voice.`;
      says.title = adapter.about;
      button.textContent = adapter.on ? "Take it off" : "Put it back";
    },
  );
  button.addEventListener("click", () => useAdapter(!current().adapter?.on));
}
