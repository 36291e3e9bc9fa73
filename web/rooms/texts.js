/** A story or conversation as text for other places: Markdown, a command for a terminal, a line that says whose it is. */

import { path } from "../leaf.js";

/** @import { Leaf, Turn } from "../leaf.js" */
/** @import { Card, ModelPart } from "../messages.js" */

/**
 * As in "Told by Fabella Stories with seed 7, in a browser, with Fabella."
 * @param {Leaf} leaf
 * @param {Turn} turn  the last
 * @param {Card} model  the page's, which may be another than the leaf's
 */
export function signature(leaf, { settings, code }, model) {
  const name = (leaf.model.id === model.id && model.title) || leaf.model.name;
  const seed = leaf.kind === "story" && settings ? ` with seed ${settings.seed}` : "";
  const by = code === undefined ? "" : `${seed && " and"} with code of its reader’s`;
  return `Told by ${name}${seed}${by}, a small language model in a browser.`;
}

/**
 * @param {Leaf} leaf
 * @param {Turn} turn
 * @param {Card} model
 * @param {string} link  "" if there is none
 */
export function markdown(leaf, turn, model, link) {
  const turns = path(leaf);
  const said =
    leaf.kind === "story"
      ? [story(turns[0].text, turns[1]?.text ?? "")]
      : turns.map(({ role, text }) => (role === "user" ? `**You:** ${plain(text.trim())}` : text.trim())); // it is Markdown
  const below = escaped(signature(leaf, turn, model));
  return [...said, `*${below}*${link && ` [Hear it told](<${link}>)`}`].join("\n\n") + "\n";
}

/** Its beginning is the visitor's, and stands in bold. @param {string} given @param {string} told */
function story(given, told) {
  /** @type {string[]} */
  const lines = [];
  let left = given.length;
  for (const line of (given + told).split("\n")) {
    const cut = Math.max(0, Math.min(left, line.length));
    left -= line.length + 1;
    const [, before, bold, after] = /^(\s*)(.*?)(\s*)$/s.exec(line.slice(0, cut)) ?? [];
    const marked = bold ? `**${escaped(bold)}**` : "";
    const whole = (before + marked + after + escaped(line.slice(cut))).trim();
    if (whole) lines.push(atStart(whole));
  }
  return lines.join("\n\n");
}

/** @param {string} text  of several lines */
const plain = (text) =>
  text
    .split(/\n+/)
    .map((line) => atStart(escaped(line.trim())))
    .join("\n\n");

/** @param {string} text */
const escaped = (text) => text.replace(/[\\`*_[\]<>~&|]/g, "\\$&");

/** What would begin a heading, a list or a rule. @param {string} line */
const atStart = (line) =>
  line.replace(/^(#|\+|-|=|\d+(?=[.)]))/, (begin) => (/\d/.test(begin) ? `${begin}\\` : `\\${begin}`));

/**
 * The same story as a command for a terminal.
 * @param {Leaf} leaf
 * @param {Turn} turn
 * @param {Card} model
 */
export function command(leaf, { parent, settings }, model) {
  if (!settings) return "";
  const file = /** @type {Partial<ModelPart>} */ (model).file ?? `${model.name}.gguf`;
  const { temperature, top_p, top_k, min_p, repetition_penalty, length, seed } = settings;
  const quoted = (/** @type {string} */ text) => `'${text.replaceAll("'", "'\\''")}'`;
  const flags = [`-t ${temperature}`, `-p ${top_p}`, `-k ${top_k}`, `--min-p ${min_p}`];
  flags.push(`--repetition-penalty ${repetition_penalty}`, `-n ${length}`, `-s ${seed}`);
  return `python -m fabella ${quoted(file)} ${flags.join(" ")} -i ${quoted(leaf.turns[parent ?? 0].text)}`;
}
