/**
 * A link to a story: all that it takes to tell it again, and a mark by which whoever does so sees whether it is the same.
 *
 *     #v=1&m=1f3a…&p=Once+upon+a+time&s=7&name=Fabella+Stories&h=195.9c01….Abc…
 *
 * is address.js's fragment with the version before it, and the model's name and the mark behind it. A link comes from
 * anywhere: nothing in it is believed, and nothing is taken of one that is damaged.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { NAMES, SHORT } from "../address.js";
import { hex } from "../bytes.js";

/** @import { Settings } from "../messages.js" */

/** Of what this page writes. */
export const VERSION = "1";

/** Characters: a prompt that fills a large context, each of them written as %20. */
const LONGEST = 1 << 16;

/** So many hexadecimal digits of the tokens' hash, and so many checks of their beginnings, each of 6 bits. */
const HASH = 12;
const CHECKS = 16;

/** As py/fabella/sampler.py has them. @type {Record<keyof typeof NAMES, [least: number, most: number]>} */
const RANGES = {
  temperature: [0, Number.MAX_VALUE],
  top_p: [0, 1],
  top_k: [0, Number.MAX_SAFE_INTEGER],
  min_p: [0, 1],
  repetition_penalty: [0.01, 100],
  length: [0, Number.MAX_SAFE_INTEGER],
};
const WHOLE = ["top_k", "length"];

/** Characters of a program, as in py/fabella/live.py. */
const LONGEST_CODE = 100_000;

/** What may stand behind a link in a sentence, and is taken for its end. */
const BEHIND = "[.,;:!?)\\]}>*\"'”’]*";

/**
 * @typedef {object} Mark  by which the tokens told are known
 * @property {number} count  how many
 * @property {string} hash  the beginning of the SHA-256 of all, each a little-endian int32
 * @property {string} checks  of the first sixteenth, of the first two, and so on: 6 bits of the SHA-256 in base64url
 *
 * @typedef {object} Link
 * @property {string} model  the beginning of its hash
 * @property {string} name  as its teller called it
 * @property {string} prompt
 * @property {string} seed
 * @property {Partial<Settings>} settings  that are not the model's own
 * @property {[place: number, token: number][]} choices
 * @property {Mark | null} mark  null: the page's own address, which has none
 * @property {string} code  of a sampler of its own, packed; "" if it has none: to be read, and never run unread
 */

/** Why a link is not followed, in words. */
export class Damaged extends Error {
  /** @param {string} what */
  constructor(what) {
    super(`This link is damaged, or was cut off: ${what}. Nothing was told, and nothing has changed.`);
  }
}

// ---- Writing ---------------------------------------------------------------------------------------------------------

/**
 * @param {string} address  of the story, by address.js
 * @param {string} name  the model's
 * @param {number[]} tokens  told
 * @param {string} [code]  that chose them, packed
 */
export function format(address, name, tokens, code = "") {
  const { count, hash, checks } = markOf(tokens);
  const named = new URLSearchParams({ ...(code && { code }), name });
  named.set("h", `${count}.${hash}.${checks}`); // last: it is missed if it is cut off
  return `#v=${VERSION}&${address.slice(1)}&${named}`;
}

/**
 * Makes a program short: DEFLATE, in base64url.
 * @param {string} text
 */
export async function pack(text) {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const digits = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return digits.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** @param {number[]} tokens @returns {Mark} */
export const markOf = (tokens) => ({
  count: tokens.length,
  hash: hex(hashOf(tokens)).slice(0, HASH),
  checks: ends(tokens.length)
    .map((end) => checkOf(tokens.slice(0, end)))
    .join(""),
});

const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/** @param {number[]} tokens */
const checkOf = (tokens) => DIGITS[hashOf(tokens)[0] >> 2];

/** Where the beginnings end that are checked. @param {number} count  of tokens @returns {number[]} */
const ends = (count) => Array.from({ length: CHECKS }, (_, index) => Math.ceil(((index + 1) * count) / CHECKS));

/** @param {number[]} tokens */
function hashOf(tokens) {
  const bytes = new DataView(new ArrayBuffer(4 * tokens.length));
  tokens.forEach((token, index) => bytes.setInt32(4 * index, token, true));
  return sha256(new Uint8Array(bytes.buffer));
}

// ---- Comparing -------------------------------------------------------------------------------------------------------

/**
 * @param {number[]} tokens  told here
 * @param {Mark} mark  of those told there
 * @returns {{ same: boolean, after: number, before: number }} whether all are the same; if not, after how many that are,
 *     and before how many, the first is that is not. If they are the same as far as they go, both are where they end
 */
export function compare(tokens, mark) {
  let after = 0;
  for (const [index, end] of ends(mark.count).entries()) {
    if (end > tokens.length) break;
    if (checkOf(tokens.slice(0, end)) !== mark.checks[index]) return { same: false, after, before: end };
    after = end;
  }
  if (tokens.length !== mark.count) {
    const end = Math.min(tokens.length, mark.count);
    return { same: false, after: end, before: end };
  }
  // By chance a check is right that should not be, one time in 64: the hash is not.
  const same = hex(hashOf(tokens)).startsWith(mark.hash);
  return { same, after: same ? after : 0, before: mark.count };
}

// ---- Reading ---------------------------------------------------------------------------------------------------------

/** What base64url says. @param {string} text @throws {Damaged} */
function bytesOf(text) {
  try {
    return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (sign) => sign.charCodeAt(0));
  } catch {
    throw new Damaged("the code in it is none");
  }
}

/**
 * The program in a link.
 * @param {string} packed
 * @throws {Damaged}
 */
export async function unpack(packed) {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const reader = new Blob([bytesOf(packed)]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  let text = "";
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += decoder.decode(part.value, { stream: true });
      if (text.length > LONGEST_CODE) break;
    }
    text += decoder.decode();
  } catch {
    throw new Damaged("the code in it is none");
  } finally {
    reader.cancel().catch(() => {}); // a small link may hold a text without end
  }
  if (text.length > LONGEST_CODE) throw new Damaged(`the code in it has more than ${LONGEST_CODE} characters`);
  return text;
}

/**
 * @param {string} fragment  with its #
 * @returns {Link}
 * @throws {Damaged}
 */
export function parse(fragment) {
  if (fragment.length > LONGEST)
    throw new Damaged(`it has ${fragment.length.toLocaleString("en")} characters, and a link to a story fewer`);
  const named = fields(fragment.slice(1));
  const version = named.get("v");
  if (version !== undefined && version !== VERSION)
    throw new Damaged(`it is of the kind “${version.slice(0, 12)}”, and this page knows kind ${VERSION}`);
  const [model = "", seed = "", prompt, mark, code = ""] = ["m", "s", "p", "h", "code"].map((name) => named.get(name));
  if (!new RegExp(`^[0-9a-f]{${SHORT}}$`).test(model)) throw new Damaged("it names no model");
  if (!/^[1-9][0-9]{0,17}$/.test(seed)) throw new Damaged("it has no seed");
  if (prompt === undefined) throw new Damaged("the story’s beginning is not in it");
  if (version && mark === undefined) throw new Damaged("its end is missing");
  if (!/^[\w-]*$/.test(code) || code.length % 4 === 1) throw new Damaged("the code in it is none");
  return {
    model,
    name: (named.get("name") ?? "").slice(0, 80),
    prompt,
    seed,
    settings: settingsIn(named),
    choices: choicesIn(named.get("c")),
    mark: mark === undefined ? null : markIn(mark),
    code,
  };
}

/** @param {string} text @returns {Map<string, string>} */
function fields(text) {
  const named = new Map();
  for (const field of text.split("&")) {
    const at = field.indexOf("=");
    if (at < 1) throw new Damaged(field ? `“${field.slice(0, 20)}” says nothing` : "something in it is empty");
    const name = field.slice(0, at);
    if (named.has(name)) throw new Damaged(`“${name.slice(0, 20)}” is in it twice`);
    try {
      named.set(name, decodeURIComponent(field.slice(at + 1).replaceAll("+", " ")));
    } catch {
      throw new Damaged(`“${name.slice(0, 20)}” is no text`);
    }
  }
  return named;
}

/** @param {Map<string, string>} named */
function settingsIn(named) {
  /** @type {Partial<Settings>} */
  const settings = {};
  for (const setting of /** @type {(keyof typeof NAMES)[]} */ (Object.keys(NAMES))) {
    const text = named.get(NAMES[setting]);
    if (text === undefined) continue;
    const value = /^\d{1,20}(\.\d{1,30})?(e-\d{1,3})?$/.test(text) ? Number(text) : NaN;
    const [least, most] = RANGES[setting];
    if (!(value >= least && value <= most) || (WHOLE.includes(setting) && !Number.isInteger(value)))
      throw new Damaged(`its ${setting.replace("_", " ")} is “${text.slice(0, 20)}”`);
    settings[setting] = value;
  }
  return settings;
}

/** @param {string} [text]  as address.js writes them @returns {Link["choices"]} */
function choicesIn(text) {
  if (text === undefined) return [];
  if (!/^\d{1,6}\.\d{1,8}(_\d{1,6}\.\d{1,8})*$/.test(text)) throw new Damaged("its choices of words are none");
  const choices = text.split("_").map((choice) => choice.split(".").map(Number));
  if (choices.some(([place], index) => index > 0 && place <= choices[index - 1][0]))
    throw new Damaged("its choices of words are in no order");
  return /** @type {Link["choices"]} */ (choices);
}

/** @param {string} text @returns {Mark} */
function markIn(text) {
  const [, count, hash, checks] =
    new RegExp(`^(\\d{1,7})\\.([0-9a-f]{${HASH}})\\.([\\w-]{${CHECKS}})${BEHIND}$`).exec(text) ?? [];
  if (!count) throw new Damaged("its end is missing");
  return { count: Number(count), hash, checks };
}
