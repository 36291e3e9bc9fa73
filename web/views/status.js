/** How far the storyteller is, in words and as a bar, and what went wrong. */

import { element } from "../dom.js";
import { phase, watch } from "../state.js";
import { ending, megabytes, pace, sentence, tokens } from "../words.js";

const STATUS = {
  loading: "The storyteller is waking up.",
  waiting: "The storyteller is still waking up. Your story begins right after.",
  ready: "The storyteller is ready.",
  telling: "Telling …",
  failed: "The storyteller is not awake.",
};

/** @param {{ again: () => void }} actions */
export function mountStatus(actions) {
  const line = element("status", HTMLElement);
  const meter = element("meter", HTMLElement);
  const progress = element("progress", HTMLProgressElement);
  const problem = element("problem", HTMLElement);
  const again = element("again", HTMLButtonElement);

  watch(
    (state) => [phase(state), state.ended],
    (phase, ended) => {
      document.body.dataset.state = phase;
      line.textContent = phase === "ready" && ended ? ending(ended, 0)[0] : STATUS[phase];
      again.hidden = phase !== "failed";
    },
  );
  watch(
    (state) => [phase(state), state.arrived, state.request, state.story],
    (phase, arrived, request, story) => {
      meter.textContent = "";
      if (phase === "loading" || phase === "waiting") {
        const parts = Object.values(arrived);
        progress.max = parts.reduce((sum, { total }) => sum + total, 0);
        progress.value = parts.reduce((sum, { loaded }) => sum + loaded, 0);
        const percent = Math.floor((100 * progress.value) / progress.max);
        meter.textContent = percent < 100 ? `${percent} % of ${megabytes(progress.max)}` : "any moment now";
      } else if (phase === "telling" && story && story.id === request?.id && !request.stopped && story.tokens > 0) {
        meter.textContent = tokens(story.tokens) + pace(story.rate);
      }
    },
  );
  watch(
    ({ complaint }) => [complaint],
    (complaint) => {
      problem.textContent = sentence(complaint?.message ?? "");
      again.textContent = complaint?.wayOut === "reload" ? "Reload the page" : "Try again";
      if (complaint) problem.scrollIntoView({ block: "nearest" });
    },
  );
  again.addEventListener("click", actions.again);
}
