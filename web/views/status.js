/** How far the storyteller is, in words and as a bar, and what went wrong. */

import { element } from "../dom.js";
import { phase, watch } from "../state.js";
import { duration, ending, megabytes, pace, sentence, tokens } from "../words.js";

const STATUS = {
  loading: "The storyteller is waking up.",
  waiting: "The storyteller is still waking up. Your story begins right after.",
  ready: "The storyteller is ready.",
  telling: "Telling …",
  failed: "The storyteller is not awake.",
};

const TALKING = {
  loading: "The model is waking up.",
  waiting: "The model is still waking up. Its answer begins right after.",
  ready: "The model is ready.",
  telling: "Answering …",
  failed: "The model is not awake.",
};

/** Seconds: what takes less needs no forecast. */
const LONG = 3;

/** @param {{ again: () => void }} actions */
export function mountStatus(actions) {
  const line = element("status", HTMLElement);
  const meter = element("meter", HTMLElement);
  const progress = element("progress", HTMLProgressElement);
  const problem = element("problem", HTMLElement);
  const again = element("again", HTMLButtonElement);

  watch(
    (state) => [phase(state), state.ended, state.mode],
    (phase, ended, mode) => {
      document.body.dataset.state = phase;
      const busy = (mode === "chat" ? TALKING : STATUS)[phase];
      line.textContent = phase === "ready" && ended ? ending(ended, 0, mode)[0] : busy;
      again.hidden = phase !== "failed";
    },
  );
  watch(
    (state) => [phase(state), state.arrived, state.rate, state.request, state.leaf],
    (phase, arrived, rate, request, leaf) => {
      meter.textContent = "";
      if (phase === "loading" || phase === "waiting") {
        const parts = Object.values(arrived);
        progress.max = parts.reduce((sum, { total }) => sum + total, 0) || 1;
        progress.value = parts.reduce((sum, { loaded }) => sum + loaded, 0);
        const percent = Math.floor((100 * progress.value) / progress.max);
        const left = (progress.max - progress.value) / rate;
        const forecast = left > LONG && Number.isFinite(left) ? `, ${megabytes(rate)}/s, ${duration(left)} left` : "";
        meter.textContent = percent < 100 ? `${percent} % of ${megabytes(progress.max)}${forecast}` : "any moment now";
      } else if (phase === "telling" && request && !request.stopped && request.turn !== null && leaf) {
        const count = leaf.turns[request.turn].tokens.length;
        if (count > 0) meter.textContent = tokens(count) + pace(request.rate);
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
