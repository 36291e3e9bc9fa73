/** Numbers and reasons, in words. */

/** @import { Reason } from "./messages.js" */

/** @param {number} bytes */
export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/**
 * @param {number} number  as in 3563008
 * @returns {string} as in "3.6 million"
 */
export function roughly(number) {
  const [unit, name] = number >= 1e9 ? [1e9, "billion"] : number >= 1e6 ? [1e6, "million"] : [1e3, "thousand"];
  const scaled = number / unit;
  return `${scaled.toFixed(scaled < 10 ? 1 : 0)} ${name}`;
}

/** @param {number} count */
export const tokens = (count) => `${count.toLocaleString("en")} ${count === 1 ? "token" : "tokens"}`;

/**
 * @param {Reason} reason
 * @param {number} context  in tokens
 */
export function ending(reason, context) {
  return {
    end: "The end.",
    length: "Cut off here: the length you set is reached.",
    context: `Cut off here: the model’s memory is full (${tokens(context)}).`,
    stopped: "Stopped here by you.",
  }[reason];
}
