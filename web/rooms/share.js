/** Sharing: a link that tells the very same story, its text, its picture; and what comes of a link that was followed. */

import { write } from "../address.js";
import { copyText } from "../clipboard.js";
import { element } from "../dom.js";
import { last, path, plainText, titleOf } from "../leaf.js";
import { presets } from "../presets.js";
import { sentence, tokens as inTokens, wholeNumber } from "../words.js";
import { draw } from "./card.js";
import { Damaged, compare, format, pack, parse, unpack } from "./link.js";
import { button, dress, make } from "./make.js";
import { command, markdown, signature } from "./texts.js";

/** @import { Bridge } from "../bridge.js" */
/** @import { Leaf, Turn } from "../leaf.js" */
/** @import { Card, Settings } from "../messages.js" */
/** @import { House as Given } from "../rooms.js" */
/** @import { Link } from "./link.js" */

/**
 * @typedef {Given & {
 *   question: Bridge["ask"],
 *   settled: () => Promise<"ready" | "failed">,
 *   anew: () => Promise<"ready" | "failed">,
 *   setMode: (mode: "story" | "chat") => void,
 *   openCode: () => Promise<{ use: (text: string) => Promise<boolean> } | undefined>,
 *   untouched: () => Promise<unknown>,
 * }} House
 */

/** Characters of a link that carries code: what most places take that one posts it to. */
const LONGEST_WITH_CODE = 4000;

const STYLE = `
  #sharing h2 { margin: 1.5rem 0 0.6rem }
  #sharing header h2 { width: auto; margin: 0; border: 0 }
  #sharing canvas { display: block; max-width: 100%; max-height: 26rem; border: 1px solid var(--rule) }
  #sharing .far button { flex: none }
  #sharing .choice { width: fit-content; margin: 0 0 0.8rem }
  #linked-code pre { padding: 0.6rem 0.8rem; overflow: auto; max-height: 24rem; border: 1px solid var(--edge);
    font: 0.875rem/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
`;

/** @param {House} house */
export function mount(house) {
  dress(STYLE);
  const confirmed = make("p", { id: "confirmed", role: "status" });
  element("done", HTMLElement).after(confirmed);
  const code = make("section", { id: "linked-code", "aria-label": "Code in the link", tabindex: "-1", hidden: "" });
  element("problem", HTMLElement).after(code);
  const dialog = make("dialog", { id: "sharing", "aria-labelledby": "sharing-title" });
  document.body.append(dialog);

  return { open: () => open(house, dialog), follow: follower(house, confirmed, code) };
}

// ---- To share --------------------------------------------------------------------------------------------------------

/** @param {House} house @param {HTMLDialogElement} dialog */
async function open(house, dialog) {
  const { leaf, model, adapter } = house.current();
  const turn = last(leaf);
  if (!leaf || !turn || !model) return;
  const story = leaf.kind === "story";
  const ours = story && house.isOurs(leaf) && turn.settings !== null;
  // Whoever follows a link meets the page with its own adapter, or none; a command has none.
  const asBuilt = Boolean(adapter?.on) === Boolean(adapter?.own);
  const whole = ours && asBuilt && turn.code !== "" ? await linkOf(house, leaf, turn, model) : "";
  const isTooLong = turn.code !== undefined && whole.length > LONGEST_WITH_CODE;
  const link = isTooLong ? "" : whole;

  const said = make("p", { class: "hint", role: "status" });
  const say = (/** @type {string} */ text) => {
    said.textContent = text;
  };
  /** @param {string} text @param {string} what */
  const copy = async (text, what) =>
    say((await copyText(text)) ? `${what} is copied.` : "The browser did not allow it: select the text and copy it.");
  /** @param {Blob} blob @param {string} suffix */
  const save = (blob, suffix) => {
    const url = URL.createObjectURL(blob);
    const name =
      titleOf(leaf)
        .replace(/[^\p{L}\p{N} ]+/gu, "")
        .slice(0, 40)
        .trim() || "story";
    make("a", { href: url, download: name + suffix }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    say(`${name}${suffix} is saved.`);
  };

  const field = make("input", { type: "text", readonly: "", "aria-label": "Link", value: link });
  field.addEventListener("focus", () => field.select());
  const toLink = [
    make("h2", {}, "A link"),
    make(
      "div",
      { class: "far" },
      field,
      button("Copy the link", () => copy(link, "The link")),
    ),
    make(
      "p",
      { class: "hint" },
      (turn.code
        ? "It carries the code that chose the words. Whoever opens it reads that first, and then may run it: then they " +
          "hear this very story, and whether it is the same to the last bit. "
        : "Whoever opens it hears this very story, and whether it is the same to the last bit. ") +
        `It has ${wholeNumber(link.length)} characters; what is behind the # no server ever sees.`,
    ),
  ];
  const whyNoLink = isTooLong
    ? `There is no link to this story: with the code that chose its words it would have ${wholeNumber(whole.length)} ` +
      `characters, and ${wholeNumber(LONGEST_WITH_CODE)} are what most places take. Shorter code would do.`
    : ours && turn.code === ""
      ? "There is no link to this story: code of yours chose some of its words, but not all of them in one go, and so " +
        "nothing tells it again."
      : "";
  const text = `${plainText(leaf).trim()}\n\n${signature(leaf, turn, model)}\n${link ? `${link}\n` : ""}`;
  const asText = make(
    "p",
    { class: "actions" },
    button("Copy as Markdown", () => copy(markdown(leaf, turn, model, link), "The Markdown")),
    button("Save as text", () => save(new Blob([text], { type: "text/plain;charset=utf-8" }), ".txt")),
  );
  if (ours && turn.code === undefined && !adapter?.on)
    asText.append(button("Copy as command", () => copy(command(leaf, turn, model), "The command")));

  const canvas = make("canvas", { role: "img", "aria-label": "The text, as a picture" });
  const dark = matchMedia("(prefers-color-scheme: dark)").matches || document.documentElement.dataset.light === "dark";
  const paint = (/** @type {boolean} */ dark) =>
    draw(canvas, {
      blocks: blocksOf(leaf),
      title: model.title || model.name,
      below: `${signature(leaf, turn, model)} ${location.host}${location.pathname}`,
      dark,
    });
  const lights = make("div", { class: "choice", role: "radiogroup", "aria-label": "Light" });
  for (const name of ["light", "dark"]) {
    const radio = make("input", { type: "radio", name: "card-light", value: name });
    radio.checked = dark === (name === "dark");
    radio.addEventListener("change", () => paint(name === "dark"));
    lights.append(make("label", {}, radio, make("span", {}, name)));
  }
  const picture = () => canvas.toBlob((blob) => (blob ? save(blob, ".png") : say("The picture is too large.")));

  dialog.replaceChildren(
    make(
      "header",
      {},
      make("h2", { id: "sharing-title" }, "Share"),
      button("Close", () => dialog.close()),
    ),
    ...(link ? toLink : []),
    ...(whyNoLink ? [make("h2", {}, "A link"), make("p", { class: "hint" }, whyNoLink)] : []),
    make("h2", {}, "Text"),
    asText,
    said,
    make("h2", {}, "A picture"),
    lights,
    canvas,
    make("p", { class: "actions" }, button("Save the picture", picture)),
  );
  dialog.showModal();
  paint(dark);
}

/** @param {House} house @param {Leaf} leaf @param {Turn} turn @param {Card} model */
async function linkOf(house, leaf, turn, model) {
  let settings = /** @type {NonNullable<Turn["settings"]>} */ (turn.settings);
  if (turn.reason === "stopped") {
    // Where the reader stopped it, it ends for whoever follows the link.
    if ((await house.settled()) === "failed") return "";
    const { tokens } = await house.question({ type: "count", prompt: leaf.turns[turn.parent ?? 0].text }).answer;
    settings = { ...settings, length: tokens + turn.tokens.length - 1 };
  }
  const address = write(leaf, { ...turn, settings }, model);
  const code = turn.code ? await pack(turn.code) : "";
  return new URL(format(address, model.title || model.name, turn.tokens, code), location.href).href;
}

/** What is on the picture. @param {Leaf} leaf @returns {Parameters<typeof draw>[1]["blocks"]} */
function blocksOf(leaf) {
  if (leaf.kind === "story") {
    const [prompt, told] = path(leaf).map(({ text }) => text);
    return [{ label: "", text: prompt + (told ?? ""), given: prompt.length }];
  }
  return path(leaf).map(({ role, text }) =>
    role === "user" ? { label: "You", text, given: text.length } : { label: leaf.model.name, text, given: 0 },
  );
}

// ---- To follow -------------------------------------------------------------------------------------------------------

/**
 * @param {House} house
 * @param {HTMLElement} confirmed  where it is said whether the story is the same
 * @param {HTMLElement} code  where code is shown that came with a link
 */
function follower(house, confirmed, code) {
  /** The link whose story is being told, or stands there. @type {Link | null} */
  let followed = null;
  let request = 0; // that tells it
  let told = ""; // its leaf and turn

  const complain = (/** @type {string} */ message) =>
    house.change({ complaint: { message, field: null, wayOut: "again" } });

  house.watch(
    ({ request, leaf }) => [request?.id ?? 0, leaf],
    (going, leaf) => {
      if (!followed) return;
      const turn = last(leaf);
      if (request && going === request) return; // it is still being told
      if (request && !going && turn?.reason && turn.settings?.seed === followed.seed) {
        request = 0;
        told = `${leaf?.id} ${turn.id}`;
        confirm(turn);
      } else if (`${leaf?.id} ${turn?.id}` !== told || going) {
        confirmed.textContent = "";
        if (!going) followed = null;
      }
    },
  );

  /** Says whether it is the same; where its first teller has gone on beyond a loop, so does this. @param {Turn} turn */
  function confirm(turn) {
    const mark = followed?.mark;
    if (!mark) return;
    const { same, after, before } = compare(turn.tokens, mark);
    const isPart = !same && after === before && after === turn.tokens.length;
    if (isPart && turn.reason === "loop") {
      queueMicrotask(() => {
        house.goOn(turn);
        request = house.current().request?.id ?? 0;
      });
      return;
    }
    confirmed.textContent = same
      ? `The same, bit for bit, as the story in the link: all ${inTokens(mark.count)}.`
      : difference(turn, mark.count, after, before, isPart);
  }

  /** @param {string} fragment @returns {Promise<boolean>} false: its story is another model's */
  return async function follow(fragment) {
    /** @type {Link} */
    let link;
    let program = "";
    try {
      link = parse(fragment);
      program = link.code && (await unpack(link.code));
    } catch (error) {
      if (!(error instanceof Damaged)) throw error;
      complain(error.message);
      return true;
    }
    const { model } = house.current();
    if (!model?.id.startsWith(link.model)) {
      complain(
        `The story in this link was told by another model, “${link.name || link.model}” (its SHA-256 begins with ` +
          `${link.model}). This page does not have it: open its file here, and you hear the story.`,
      );
      return false;
    }
    code.hidden = true;
    const usual = { ...presets(model).balanced, length: model.context };
    const settings = { ...usual, ...link.settings, seed: link.seed };
    const standing = standsThere(house, link, settings, program);
    if (standing) {
      followed = link;
      told = `${house.current().leaf?.id} ${standing.id}`;
      confirm(standing);
      return true;
    }
    if (program) show(program, () => tell(link, settings));
    else tell(link, settings);
    return true;
  };

  /** @param {Link} link @param {Settings} settings */
  function tell(link, settings) {
    house.abandon();
    house.setMode("story");
    house.change({ prompt: link.prompt, settings: { ...house.current().settings, ...settings } });
    house.tell(link.choices.length ? link.choices : undefined);
    followed = link;
    request = house.current().request?.id ?? 0;
    house.change({ settings: { ...house.current().settings, seed: "" } }); // the next story is another
  }

  /**
   * @param {string} text  a program of whoever made the link
   * @param {() => void} tell  has it choose the words of the link's story, once it is in use
   */
  function show(text, tell) {
    const said = make("p", { class: "hint", role: "status" });
    const run = async () => {
      code.hidden = true;
      await house.anew(); // nothing is left in it of what was told before
      const room = await house.openCode();
      if (await room?.use(text)) tell();
    };
    const copy = async () => {
      said.textContent = (await copyText(text)) ? "The code is copied." : "The browser did not allow it.";
    };
    const leave = () => {
      code.hidden = true;
      history.replaceState(history.state, "", location.pathname + location.search);
      element("prompt", HTMLTextAreaElement).focus();
    };
    code.replaceChildren(
      make(
        "p",
        {},
        "This link carries a program of its own, which chose the words of its story. It comes from whoever made the " +
          "link, so nothing of it has run, and nothing was told. Read it first:",
      ),
      make("pre", { tabindex: "0", "aria-label": "The code" }, text),
      make(
        "p",
        { class: "hint" },
        "If you run it, it chooses the words of the story, and sees them and what you write here until you let the sampler " +
          "choose; it reaches neither the network nor what is kept on this machine.",
      ),
      make(
        "p",
        { class: "actions" },
        button("Run this code and hear the story", run),
        button("Copy the code", copy),
        button("Leave it", leave),
      ),
      said,
    );
    code.hidden = false;
    code.focus();
  }
}

/**
 * The link's story, if it stands on the page already, as after a reload.
 * @param {House} house
 * @param {Link} link
 * @param {Record<string, unknown>} settings
 * @param {string} code  that chose the words; "" if the sampler did
 */
function standsThere(house, link, settings, code) {
  const { leaf, request } = house.current();
  if (request || leaf?.kind !== "story" || !house.isOurs(leaf)) return null;
  const [given, turn] = path(leaf);
  if (given?.text !== link.prompt || !turn?.settings || !turn.reason || turn.code !== (code || undefined)) return null;
  const isSame = Object.entries(turn.settings).every(([name, value]) => settings[name] === value);
  const choices = JSON.stringify(turn.choices ?? []);
  return isSame && choices === JSON.stringify(link.choices) ? turn : null;
}

/** @param {Turn} turn @param {number} count @param {number} after @param {number} before @param {boolean} isPart */
function difference({ tokens, reason }, count, after, before, isPart) {
  if (isPart && reason === "stopped")
    return sentence(
      `stopped here; as far as it went it is the story in the link, ${tokens.length} of ${inTokens(count)}`,
    );
  const where =
    after !== before
      ? `${after ? `the first ${inTokens(after)} are the same, but among the next` : "among the first"} ` +
        `${before - after} of ${count} there is another`
      : isPart
        ? `the ${inTokens(after)} here are the same, but the link’s has ${count}`
        : `all ${inTokens(count)} of the link’s are the same, but here it goes on`;
  return (
    `Not the same as the story in the link: ${where}. The link may have been changed on its way; or this device ` +
    `computes otherwise: “${element("proof", HTMLButtonElement).textContent}”, below the settings, finds that out.`
  );
}
