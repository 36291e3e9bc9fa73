/** Numbers and reasons, in words. */

/** @import { Reason } from "./messages.js" */

/** @param {number} bytes */
export const megabytes = (bytes) => (bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);

/**
 * @param {number} number  as in 3563008
 * @returns {string} as in "3.6 million"
 */
export function roughly(number) {
  const [unit, name] = number >= 1e9 ? [1e9, "billion"] : number >= 1e6 ? [1e6, "million"] : [1e3, "thousand"];
  const scaled = number / unit;
  return `${scaled.toFixed(scaled < 10 ? 1 : 0)} ${name}`;
}

/** @param {number} seconds @returns {string} as in "2 min" */
export const duration = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`);

/** @param {number} count */
export const wholeNumber = (count) => count.toLocaleString("en");

/** @param {number} count */
export const tokens = (count) => `${count.toLocaleString("en")} ${count === 1 ? "token" : "tokens"}`;

/** @param {number} rate  tokens per second; 0 if there were not two of them yet */
export const pace = (rate) => (rate ? `, ${Math.round(rate).toLocaleString("en")} a second` : "");

/** Fewer tokens than these say nothing of the rate. */
const ENOUGH = 20;

/**
 * @param {import("./leaf.js").Turn} turn  of the model's
 * @returns {string} as in "195 tokens in 0.1 s, 2,900 a second. Seed 7."
 */
export function figuresOf({ tokens: told, seconds, rate, settings }) {
  const time = seconds >= 0.05 ? ` in ${seconds.toFixed(1)} s` : "";
  return `${tokens(told.length)}${time}${told.length >= ENOUGH ? pace(rate) : ""}. Seed ${settings?.seed}.`;
}

/**
 * @param {"simd" | "relaxed"} simd
 * @param {number} threads
 * @returns {string} as in "relaxed SIMD, 2 threads"
 */
export const engineName = (simd, threads) =>
  `${simd === "relaxed" ? "relaxed SIMD" : "SIMD"}, ${threads} ${threads === 1 ? "thread" : "threads"}`;

/**
 * Why a text is over: in short, and in a sentence below it.
 * @param {Reason} reason
 * @param {number} context  the model's, in tokens
 * @param {"story" | "chat"} [kind]
 * @returns {[string, string]}
 */
export function ending(reason, context, kind = "story") {
  switch (reason) {
    case "end":
      return kind === "story" ? ["The end.", "The end."] : ["Answered.", ""];
    case "length":
      return ["The length is reached.", "Broken off here: this is the length you set."];
    case "context":
      return ["The context is full.", `Broken off here: the model cannot see further than ${tokens(context)}.`];
    case "stop":
      return ["The end.", "It ends where you wanted it to."];
    case "loop":
      return ["It began to loop.", "Broken off here: it had begun to say the same words again and again."];
    case "code":
      return ["Your code went wrong.", "It waits here: your code went wrong."];
    case "stopped":
      return ["Stopped.", kind === "story" ? "You stopped the story here." : "You stopped the answer here."];
  }
}

/**
 * @param {string} message  as in "the prompt is empty"
 * @returns {string} as in "The prompt is empty."
 */
export function sentence(message) {
  const end = /[.!?…]\)?$/.test(message) ? "" : ".";
  return message.charAt(0).toUpperCase() + message.slice(1) + (message && end);
}
