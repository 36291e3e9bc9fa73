/** The story that stands on the page at first becomes one like all others. */

import { add, newLeaf, set } from "../../leaf.js";
import { presets } from "../../presets.js";

/** @import { Leaf } from "../../leaf.js" */
/** @import { Card, Step } from "../../messages.js" */
/** @import { Glass } from "../look.js" */

/** It, if it is the page's model's and nothing else stands on the page. @param {Glass} house */
export function toldBefore({ current, own }) {
  const { leaf, request, mode, model, worker } = current();
  if (leaf || request || mode !== "story" || worker !== "ready" || model?.id !== own) return null;
  return /** @type {HTMLElement | null} */ (document.querySelector("#told-before [data-seed]"));
}

/**
 * Has it told again by its seed.
 * @param {HTMLElement} told
 * @param {Glass} house
 * @returns {Promise<{ leaf: Leaf, steps: Step[] } | null>} null: it is another story, or not wanted any more
 */
export async function adopt(told, { current, question }) {
  const model = /** @type {Card} */ (current().model);
  const prompt = [...told.querySelectorAll(".given")].map(({ textContent }) => textContent).join("\n");
  const settings = { ...presets(model).balanced, length: model.context, seed: String(told.dataset.seed) };
  /** @type {Step[]} */
  const all = [];
  const message = { type: /** @type {const} */ ("tell"), prompt, settings: { ...settings, look: true }, plainly: true };
  const done = await question(message, (said) => all.push(...said.steps)).answer.catch(() => null);
  const steps = all.filter((step) => !step.from_prompt);
  const [begun, text] = [all.filter((step) => step.from_prompt), steps].map((part) =>
    part.map((step) => step.text).join(""),
  );
  const isSame = `${begun}${text}`.replace(/\n/g, "") === told.textContent?.replace(/\n/g, "");
  if (!done || !isSame || current().leaf || current().request) return null;
  const made = add(add(newLeaf("story", model), null, "user", begun), 0, "assistant", text, settings);
  const tokens = steps.map(({ token }) => token);
  return { leaf: set(made, 1, { tokens, reason: done.reason }), steps };
}
