/** What is known of the model and its engine: its name above all, and the rest in the margin. */

import { element } from "../dom.js";
import { watch } from "../state.js";
import { engineName, megabytes, roughly, tokens } from "../words.js";

/** @import { State } from "../state.js" */

/** @param {State["model"]} model @param {State["engine"]} engine @returns {Record<string, string>} */
function facts(model, engine) {
  if (!model) return {};
  const { name, bytes, parameters, layers, dim, vocab_size, context, license, quantization, memory } = model;
  const size = megabytes(bytes);
  const more = context && {
    Size: `${roughly(parameters ?? 0)} parameters, ${size}`,
    ...(quantization && { Numbers: quantization }),
    Shape: `${layers} layers, ${dim} wide`,
    Vocabulary: tokens(vocab_size ?? 0),
    Context: tokens(context),
    ...(memory && { Memory: megabytes(memory) }),
    Licence: license ?? "not stated",
  };
  return { Name: name, Size: size, ...more, ...(engine && { Engine: engineName(engine.simd, engine.threads) }) };
}

/** @param {{ openShelf: () => void }} actions */
export function mountFacts({ openShelf }) {
  const list = element("model", HTMLElement);
  watch(
    ({ model, engine }) => [model, engine],
    (model, engine) => {
      const rows = Object.entries(facts(model, engine)).map(([name, value]) => {
        const row = document.createElement("div");
        row.appendChild(document.createElement("dt")).textContent = name;
        row.appendChild(document.createElement("dd")).textContent = value;
        return row;
      });
      list.replaceChildren(...rows);
    },
  );
  watch(
    ({ model }) => [model],
    (model) => {
      if (!model) return;
      element("model-name", HTMLElement).textContent = model.title || model.name;
      element("model-size", HTMLElement).textContent = megabytes(model.bytes);
    },
  );
  watch(
    ({ unkept }) => [unkept],
    (unkept) => {
      element("unkept", HTMLElement).textContent = unkept;
    },
  );
  element("shelf-button", HTMLButtonElement).addEventListener("click", openShelf);
  element("to-settings", HTMLButtonElement).addEventListener("click", () => {
    element("margin", HTMLElement).focus();
    element("margin", HTMLElement).scrollIntoView();
  });
}
