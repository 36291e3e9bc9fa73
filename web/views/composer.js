/** What the visitor writes and chooses: the prompt, the settings, and the button that has the story told. */

import { element } from "../dom.js";
import { change, current, phase, watch } from "../state.js";
import { tokens } from "../words.js";

/** @param {{ tell: () => void, stop: () => void }} actions */
export function mountComposer({ tell, stop }) {
  const form = element("ask", HTMLFormElement);
  const prompt = element("prompt", HTMLTextAreaElement);
  const button = element("tell", HTMLButtonElement);
  const temperature = element("temperature", HTMLInputElement);
  const topP = element("top_p", HTMLInputElement);
  const topK = element("top_k", HTMLInputElement);
  const length = element("length", HTMLInputElement);
  const seed = element("seed", HTMLInputElement);
  const controls = [prompt, temperature, topP, topK, length, seed];
  let seedInField = "";

  /** Takes over what the visitor has done; at first, what the page begins with. */
  function changed() {
    seedInField = seed.value;
    const numbers = { temperature: temperature.valueAsNumber, top_p: topP.valueAsNumber, top_k: topK.valueAsNumber };
    const settings = { ...numbers, length: length.valueAsNumber, seed: seedInField };
    change({ prompt: prompt.value, settings });
  }

  changed();
  form.addEventListener("input", changed);

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    changed(); // also by a program, of which no event tells
    tell();
  });

  button.addEventListener("click", (event) => {
    if (!current().request) return; // it says Tell, and the form is submitted
    event.preventDefault(); // stopping may make it a submit button before the browser asks what this click does
    if (event.detail < 2) stop(); // the second click of a double click means nothing
  });

  prompt.addEventListener("keydown", (event) => {
    // Enter also ends a composition, as of Japanese; in Safari, which has then ended it, only the key code says so.
    const composing = event.isComposing || event.keyCode === 229;
    if (event.key === "Enter" && !event.shiftKey && !composing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });

  watch(
    ({ request }) => [request !== null],
    (busy) => {
      button.textContent = busy ? "Stop" : "Tell";
      button.type = busy ? "button" : "submit"; // so that Enter in a field never presses Stop
    },
  );
  watch(
    ({ model }) => [model?.context],
    (context) => {
      if (!context) return;
      length.max = String(context);
      changed(); // for the browser has lowered what was above it
    },
  );
  watch(
    ({ settings }) => [settings],
    (settings) => {
      /** @type {[HTMLInputElement, string][]} */
      const values = [
        [temperature, settings.temperature.toFixed(2)],
        [topP, settings.top_p < 1 ? settings.top_p.toFixed(2) : "off"],
        [topK, settings.top_k > 0 ? String(settings.top_k) : "off"],
        [length, tokens(settings.length)],
      ];
      for (const [control, value] of values) {
        element(`${control.id}-value`, HTMLElement).textContent = value;
        control.ariaValueText = value;
      }
      if (settings.seed !== seedInField) seed.value = seedInField = settings.seed;
    },
  );
  watch(
    ({ complaint }) => [complaint],
    (complaint) => {
      for (const control of controls) control.ariaInvalid = String(control.id === complaint?.field);
    },
  );
}
