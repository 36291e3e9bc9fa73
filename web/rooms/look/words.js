/** Tokens and numbers, to be read. */

import { make } from "../make.js";

/** @typedef {{ id: number, text: string, kind: "text" | "control" | "bytes" | "unknown" }} Token */
/** @typedef {[id: number, logit: number, probability: number]} Candidate */

/** @param {number} share @returns {string} as in "31 %" */
export function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.01) return "< 0.01 %";
  return `${value.toFixed(value >= 9.95 || value === 0 ? 0 : value >= 0.995 ? 1 : 2)} %`;
}

/** Space is made visible. @param {string} text */
const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥");

/** Characters without a shape are spelled by their numbers: those that control, and those by themselves that join. @param {string} text */
const spelled = (text) => text.replace(/\p{Cc}|^\p{C}+$/gu, (signs) => [...signs].map(number).join(""));

/** @param {string} sign */
const number = (sign) => `⟨${sign.codePointAt(0)?.toString(16).toUpperCase().padStart(2, "0")}⟩`;

/** A token on the page: spaces and line ends as quiet signs. @param {Token} token */
export function shown({ text, kind }) {
  if (kind !== "text")
    return make("span", { class: "strange" }, text || "nothing", make("small", {}, ` ${KINDS[kind]}`));
  const [, before, inside, after] = /** @type {RegExpMatchArray} */ (text.match(/^(\s*)(.*?)(\s*)$/su));
  return make("bdi", {}, sign(before), spelled(inside), sign(after));
}

/** The same within a sentence, where it would be taken for the sentence's own. @param {Token} token */
export const boxed = (token) => make("span", { class: "look-piece" }, shown(token));

/** @param {string} space */
const sign = (space) => make("i", { "aria-hidden": "true" }, visible(space));

const KINDS = { control: "a sign for the model", bytes: "part of a character", unknown: "unknown" };

/** The same to be heard. @param {Token} token */
export function spoken({ text, kind }) {
  if (kind !== "text") return `${text || "nothing"}, ${KINDS[kind]}`;
  const word = spelled(text.trim());
  if (!word) return text.includes("\n") ? "a line’s end" : "a space";
  return /^\s/.test(text) ? `“${word}”` : `“${word}”, joined to what is before it`;
}

/** @param {number} nats @returns {number} in bits */
export const bits = (nats) => nats / Math.LN2;
