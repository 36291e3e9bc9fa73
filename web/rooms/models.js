/** The shelf's models: the page's own, what its builder offers, and the visitor's. */

import { megabytes, roughly, sentence, wholeNumber } from "../words.js";
import { list, remove, usage } from "../store.js";
import { button, make } from "./make.js";

/** @import { Card, Source } from "../messages.js" */
/** @import { House } from "./shelf.js" */

/** Of the memory that the browser tells of (in GiB, 8 at most) a page gets about this part. */
const SHARE = 0.5;

/**
 * @param {House} house
 * @param {() => void} close
 */
export function models(house, close) {
  const rows = make("ul", { class: "rows" });
  const said = make("p", { class: "problem", role: "status" });
  const used = make("p", { class: "hint" });
  const input = make("input", { type: "file", multiple: "", hidden: "" });
  const choose = button("Choose a file", () => input.click());
  const own = make(
    "p",
    {},
    "Drop a .gguf file anywhere on the page, or a llama2.c .bin with its tokenizer.bin; it stays on this machine. An ",
    "adapter (LoRA, .gguf) is put on the model in use. ",
    choose,
    input,
  );
  const address = make("input", {
    type: "url",
    id: "model-url",
    placeholder: "the address of a .gguf file",
    "aria-label": "Address of a model",
  });
  const fetching = button("Get", () => fetchFrom(address.value));
  const far = make("p", { class: "far" }, address, fetching);
  const root = make("div", {}, rows, said, own, ...(house.assets.hosts.length > 0 ? [far] : []), used);

  input.addEventListener("change", () => {
    takeFiles([...(input.files ?? [])]);
    input.value = "";
  });

  /** @param {Source} source */
  function take(source) {
    house.load(source);
    close();
  }

  /** @param {string} url */
  function fetchFrom(url) {
    const { hosts } = house.assets;
    const origin = URL.canParse(url) ? new URL(url).origin : "";
    if (hosts.includes(origin)) take({ kind: "url", url });
    else said.textContent = `This page may open models of ${hosts.join(" and ")} only, by their whole address.`;
  }

  /** @param {File[]} files */
  async function takeFiles(files) {
    const tokenizer = files.find(({ name }) => /^tok.*\.bin$/.test(name) && files.length === 2);
    const file = files.find((file) => file !== tokenizer);
    if (!file) return;
    said.textContent = `Reading ${file.name} …`;
    try {
      const card = await house.describe(file, tokenizer);
      said.textContent = "";
      if (card.adapter) {
        await house.adapt(file);
        close();
        return;
      }
      const source = /** @type {const} */ ({ kind: "file", file, ...(tokenizer && { tokenizer }) });
      if (files.length > (tokenizer ? 2 : 1))
        said.textContent = "One model at a time: the others are left where they are.";
      rows.append(row(card, { source, state: "yours", action: "load" }));
      rows.lastElementChild?.querySelector("button")?.focus();
    } catch (error) {
      said.textContent = `${file.name}: ${sentence(/** @type {Error} */ (error).message)}`;
    }
  }

  /**
   * @param {Card} card
   * @param {{ source: Source, state: string, action: string, kept?: boolean }} how
   */
  function row(card, { source, state, action, kept = false }) {
    const inUse = card.id !== undefined && card.id === house.current().model?.id;
    const facts = [
      card.family,
      card.parameters && `${roughly(card.parameters)} parameters`,
      card.quantization,
      megabytes(card.bytes),
      card.context && `${wholeNumber(card.context)} tokens of context`,
      card.license ? `licence ${card.license}` : "licence not stated",
    ];
    const use = inUse
      ? make("span", { class: "in-use" }, "in use")
      : button(action, () => take(source), `${action} ${card.name}`);
    const buttons = [use];
    if (kept && !inUse) buttons.push(button("remove", () => forget(card), `remove ${card.name}`));
    return make(
      "li",
      {},
      make("strong", {}, card.title || card.name),
      ` ${card.chats ? "talks" : "tells"} · ${state}`,
      make("span", { class: "hint" }, facts.filter(Boolean).join(" · ")),
      ...(card.memory ? [make("span", { class: "hint" }, need(card.memory))] : []),
      make("span", { class: "actions" }, ...buttons),
    );
  }

  /** @param {Card} card */
  async function forget(card) {
    try {
      await remove(card.id);
    } catch {
      said.textContent = `${card.name} cannot be removed while a tab is loading it.`;
    }
    await draw();
    choose.focus();
  }

  async function draw() {
    const kept = await list().catch(() => []);
    const offers = [house.assets.model, ...house.assets.offers];
    const isKept = (/** @type {string} */ id) => kept.some((model) => model.id === id);
    const offered = offers.map((part, index) =>
      row(part, {
        source: { kind: "offer", part, chosen: true },
        state: isKept(part.id) ? "kept on this machine" : index === 0 ? "comes with the page" : "offered",
        action: isKept(part.id) || index === 0 ? "load" : "get",
        kept: isKept(part.id),
      }),
    );
    const others = kept
      .filter(({ id }) => !offers.some((part) => part.id === id))
      .map(({ id, name, bytes, card }) =>
        row(/** @type {Card} */ ({ ...card, id, name: card?.name || name, bytes }), {
          source: { kind: "kept", id },
          state: "yours",
          action: "load",
          kept: true,
        }),
      );
    rows.replaceChildren(...offered, ...others);
    if (house.current().unkept && !said.textContent) said.textContent = house.current().unkept;
    const space = await usage();
    used.textContent = space.quota
      ? `${megabytes(space.used)} of the ${megabytes(space.quota)} that the browser lets this page keep are used.`
      : "The browser keeps no models for this page.";
  }

  return { element: root, draw, take: takeFiles };
}

/** @param {number} bytes */
function need(bytes) {
  const needs = `needs about ${megabytes(bytes)} of memory`;
  const told = /** @type {{ deviceMemory?: number }} */ (navigator).deviceMemory; // Chromium alone says it
  if (!told) return `${needs}; this browser does not say how much there is`;
  const enough = bytes < SHARE * told * 2 ** 30;
  return enough ? `${needs}; there is room` : `${needs}, which may be more than this machine has to give`;
}
