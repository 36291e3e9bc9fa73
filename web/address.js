/**
 * The page's state as an address: all that makes a story, in the fragment, which browsers send to no server. Whoever
 * opens the address hears the same story, for one seed tells one story.
 */

import { presets } from "./presets.js";

/** @import { Leaf, Turn } from "./leaf.js" */
/** @import { Card, Settings } from "./messages.js" */

/** In the fragment, by the setting's name. */
export const NAMES = /** @type {const} */ ({
  temperature: "t",
  top_p: "tp",
  top_k: "tk",
  min_p: "mp",
  repetition_penalty: "rp",
  length: "n",
});

/** So much of a model's hash names it. */
export const SHORT = 12;

/**
 * @typedef {object} Address
 * @property {string} model  the beginning of its hash, or "" for the page's own
 * @property {string | null} prompt
 * @property {string} seed
 * @property {Partial<Settings>} settings
 * @property {"story" | "chat" | ""} mode  what the model shall do, if it can
 * @property {boolean} compact  whether nothing but the leaf is wanted
 * @property {boolean} shared  whether rooms/share.js is to read it: it says more than what is read here
 */

/** @param {string} fragment  with its # @returns {Address} */
export function read(fragment) {
  const named = new URLSearchParams(fragment.slice(1));
  /** @type {Partial<Settings>} */
  const settings = {};
  for (const [setting, name] of Object.entries(NAMES)) {
    const value = Number(named.get(name) ?? NaN);
    if (Number.isFinite(value)) settings[/** @type {keyof typeof NAMES} */ (setting)] = value;
  }
  const seed = named.get("s") ?? "";
  const mode = named.get("mode");
  return {
    model: (named.get("m") ?? "").slice(0, 80),
    prompt: named.get("p"),
    seed: /^[1-9][0-9]{0,17}$/.test(seed) ? seed : "",
    settings,
    mode: mode === "story" || mode === "chat" ? mode : "",
    compact: named.get("view") === "leaf",
    shared: ["v", "c", "code"].some((name) => named.has(name)),
  };
}

/**
 * The fragment of a story.
 * @param {Leaf} leaf
 * @param {Turn} turn  the model's
 * @param {Card | null} model
 */
export function write(leaf, turn, model) {
  const { settings } = turn;
  if (!settings) return "";
  const named = new URLSearchParams({
    m: leaf.model.id.slice(0, SHORT),
    p: leaf.turns[turn.parent ?? 0].text,
    s: settings.seed,
  });
  const usual = leaf.model.id === model?.id ? { ...presets(model).balanced, length: model.context } : null;
  for (const [setting, name] of Object.entries(NAMES)) {
    const key = /** @type {keyof typeof NAMES} */ (setting);
    if (settings[key] !== usual?.[key]) named.set(name, String(settings[key]));
  }
  if (turn.choices?.length) named.set("c", turn.choices.map((choice) => choice.join(".")).join("_"));
  return `#${named}`;
}
