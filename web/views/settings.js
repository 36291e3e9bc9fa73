/** How the words are chosen, and how fast they appear: three presets, a pace, a seed, and the sliders beneath. */

import { element } from "../dom.js";
import { presetOf, presets } from "../presets.js";
import { change, current, watch } from "../state.js";
import { tokens } from "../words.js";

/** @import { Pace } from "../pace.js" */
/** @import { Preset } from "../presets.js" */

const SLIDERS = /** @type {const} */ (["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "length"]);

const SEED = /^([1-9][0-9]{0,17})?$/;

const PRESETS = {
  careful: "Keeps to likely words.",
  balanced: "Chooses words as this model likes it best.",
  bold: "Takes less likely words, too.",
  own: "Chooses words as you have set it.",
};

const PACES = {
  "at once": "As fast as it can.",
  reading: "About as fast as you read.",
  "a word": "Space, or a tap on the text, shows the next word.",
};

/**
 * @param {object} actions
 * @param {(pace: Pace) => void} actions.setPace
 * @param {(mode: "story" | "chat") => void} actions.setMode
 */
export function mountSettings({ setPace, setMode }) {
  const sliders = SLIDERS.map((name) => element(name, HTMLInputElement));
  const length = element("length", HTMLInputElement);
  const seed = element("seed", HTMLInputElement);
  const system = element("system", HTMLTextAreaElement);
  const fine = element("fine", HTMLDetailsElement);
  const radios = (/** @type {string} */ name) =>
    /** @type {HTMLInputElement[]} */ ([...document.querySelectorAll(`input[name="${name}"]`)]);
  let seedInField = "";

  /** Takes over the seed, also one that a program has put there, of which no event tells. */
  function takeSeed() {
    seedInField = seed.value;
    const fits = SEED.test(seedInField);
    seed.setCustomValidity(fits ? "" : "The seed must be a whole number from 1 on, of up to 18 digits");
    change({ settings: { ...current().settings, seed: fits ? seedInField : "" } });
    settled("seed");
  }

  /** What was wrong with a control is wrong no longer. @param {string} field */
  function settled(field) {
    if (current().complaint?.field === field) change({ complaint: null });
  }

  takeSeed();
  seed.addEventListener("input", takeSeed);
  element("ask", HTMLFormElement).addEventListener("submit", takeSeed, { capture: true });
  system.addEventListener("input", () => change({ system: system.value }));
  for (const slider of sliders) {
    const take = () => {
      change({ settings: { ...current().settings, [slider.id]: slider.valueAsNumber } });
      settled(slider.id);
    };
    take(); // what the page begins with
    slider.addEventListener("input", take);
  }

  for (const radio of radios("preset")) {
    radio.addEventListener("change", () => {
      const { settings, model } = current();
      change({ settings: { ...settings, ...presets(model)[/** @type {Preset} */ (radio.value)] } });
    });
  }
  for (const radio of radios("pace")) {
    radio.addEventListener("change", () => setPace(/** @type {Pace} */ (radio.value)));
  }

  for (const radio of radios("mode")) {
    radio.addEventListener("change", () => setMode(/** @type {"story" | "chat"} */ (radio.value)));
  }

  watch(
    ({ model, mode, request }) => [model?.chats, mode, request !== null],
    (chats, mode, busy) => {
      element("modes", HTMLElement).hidden = !chats && mode !== "chat";
      for (const radio of radios("mode")) {
        radio.checked = radio.value === mode;
        radio.disabled = busy;
      }
    },
  );
  watch(
    ({ model, settings }) => [model?.context, settings.length],
    (context, wanted) => {
      if (!context) return;
      length.max = String(context);
      if (wanted < 1 || wanted > context) change({ settings: { ...current().settings, length: context } });
    },
  );
  watch(
    ({ settings, model }) => [settings, model],
    (settings, model) => {
      for (const slider of sliders) {
        const name = /** @type {(typeof SLIDERS)[number]} */ (slider.id);
        if (slider.valueAsNumber !== settings[name]) slider.value = String(settings[name]);
        const value = inWords(name, settings[name]);
        element(`${name}-value`, HTMLElement).textContent = value;
        slider.ariaValueText = value;
      }
      if (settings.seed !== seedInField && seed.validity.valid) seed.value = seedInField = settings.seed;
      const preset = presetOf(settings, model);
      for (const radio of radios("preset")) radio.checked = radio.value === preset;
      element("preset-hint", HTMLElement).textContent = PRESETS[preset ?? "own"];
    },
  );
  watch(
    ({ pace }) => [pace],
    (pace) => {
      for (const radio of radios("pace")) radio.checked = radio.value === pace;
      element("pace-hint", HTMLElement).textContent = PACES[pace];
    },
  );
  watch(
    ({ mode, system, leaf }) => [mode, leaf?.kind === "chat" ? leaf.system : system, leaf?.kind === "chat"],
    (mode, text, stands) => {
      system.readOnly = stands;
      element("system-hint", HTMLElement).textContent = stands
        ? "This conversation began with it; a new one can have another."
        : "What the model is told before the conversation: who it is, how it speaks.";
      element("system-setting", HTMLElement).hidden = mode !== "chat";
      element("length-of", HTMLElement).hidden = mode === "chat";
      if (text !== system.value) system.value = text;
    },
  );
  watch(
    ({ complaint }) => [complaint],
    (complaint) => {
      for (const control of [...sliders, seed]) {
        const concerned = control.id === complaint?.field;
        control.ariaInvalid = String(concerned);
        if (concerned && control !== seed) fine.open = true;
      }
    },
  );
}

/** @param {(typeof SLIDERS)[number]} name @param {number} value */
function inWords(name, value) {
  if (name === "length") return tokens(value);
  const off = { top_p: 1, top_k: 0, min_p: 0, repetition_penalty: 1 };
  if (name in off && value === off[/** @type {keyof typeof off} */ (name)]) return "off";
  return name === "top_k" ? String(value) : value.toFixed(2);
}
