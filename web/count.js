/** Counts the tokens of what is in the box, with what was said before it: how much the model has to read. */

import { Refusal } from "./bridge.js";
import { last, messages, path } from "./leaf.js";
import { change, current, watch } from "./state.js";

/** @import { Bridge } from "./bridge.js" */

/** Milliseconds without a key, after which it is counted. */
const PAUSE = 150;

/** @param {() => Bridge} bridge */
export function startCounting(bridge) {
  let timer = 0;
  let asked = 0;

  async function count() {
    const { worker, request, mode, prompt, leaf, system } = current();
    if (worker !== "ready" || request) return; // counted when that is over
    const number = ++asked;
    const turns = leaf?.kind === "chat" ? path(leaf) : [];
    const draft = /** @type {const} */ ({ role: "user", content: prompt });
    const said = messages(leaf?.kind === "chat" ? leaf.system : system, turns);
    const question = mode === "chat" ? { messages: prompt || !last(leaf) ? [...said, draft] : said } : { prompt };
    try {
      const { tokens, strange } = await bridge().ask({ type: "count", ...question }).answer;
      if (number === asked) change({ counted: { tokens, strange } });
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      change({ counted: null }); // what is wrong with it will be said when it is asked for
    }
  }

  watch(
    ({ worker, request, mode, prompt, leaf, system }) => [
      worker,
      request === null,
      mode,
      prompt,
      leaf?.id,
      leaf?.picked,
      system,
    ],
    (..._) => {
      clearTimeout(timer);
      timer = setTimeout(count, PAUSE);
    },
  );
}
