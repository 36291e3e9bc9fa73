/** Three ways of choosing words, for those who would rather not turn every screw. */

/** @import { Card, Settings } from "./messages.js" */
/** @typedef {"careful" | "balanced" | "bold"} Preset */

/** What every preset says. */
const NAMES = /** @type {const} */ (["temperature", "top_p", "top_k", "min_p", "repetition_penalty"]);

/** Until a model says otherwise. */
const USUAL = { temperature: 0.8, top_p: 0.9, top_k: 0, min_p: 0, repetition_penalty: 1, length: 0 };

/**
 * @param {Card | null} model  whose own settings are the balanced ones
 * @returns {Record<Preset, Omit<Settings, "seed" | "length">>}
 */
export function presets(model) {
  const { length: _, ...balanced } = model?.settings ?? USUAL;
  const { temperature } = balanced;
  return {
    careful: { ...balanced, temperature: rounded(temperature * 0.6) },
    balanced,
    bold: { ...balanced, temperature: rounded(temperature * 1.4), top_p: Math.max(balanced.top_p, 0.95) },
  };
}

/** To what the sliders can stand at. @param {number} value */
const rounded = (value) => Math.round(20 * value) / 20;

/**
 * @param {Settings} settings
 * @param {Card | null} model
 * @returns {Preset | null} null: the visitor's own
 */
export function presetOf(settings, model) {
  const all = Object.entries(presets(model));
  const found = all.find(([, preset]) => NAMES.every((name) => settings[name] === preset[name]));
  return /** @type {Preset | undefined} */ (found?.[0]) ?? null;
}
