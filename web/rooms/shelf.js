/** The shelf: the models that this page can run, and what was told and kept here. */

import { element } from "../dom.js";
import { leaves } from "./leaves.js";
import { button, make } from "./make.js";
import { models } from "./models.js";

/** @import { House as Given } from "../rooms.js" */
/** @import { AdapterCard, Assets, Card, Source } from "../messages.js" */

/**
 * @typedef {Given & {
 *   assets: Assets,
 *   versions: Map<string, number>,
 *   load: (source: Source) => void,
 *   describe: (file: File, tokenizer?: File) => Promise<Card & { adapter?: AdapterCard }>,
 *   adapt: (file: File) => Promise<void>,
 * }} House
 */

/** @param {House} house */
export function mount(house) {
  const dialog = element("shelf", HTMLDialogElement);
  const close = () => dialog.close();
  const sides = { Models: models(house, close), Kept: leaves(house, close) };
  let side = /** @type {keyof typeof sides} */ ("Models");

  const tabs = make("div", { role: "tablist" });
  const panel = make("div", { id: "shelf-panel", role: "tabpanel" });
  for (const name of /** @type {(keyof typeof sides)[]} */ (Object.keys(sides))) {
    const tab = button(name, () => show(name));
    tab.role = "tab";
    tab.id = `shelf-${name}`;
    tab.setAttribute("aria-controls", panel.id);
    tabs.append(tab);
  }
  tabs.addEventListener("keydown", ({ key }) => {
    if (key !== "ArrowLeft" && key !== "ArrowRight") return;
    show(side === "Models" ? "Kept" : "Models");
    document.getElementById(`shelf-${side}`)?.focus();
  });
  const closing = button("Close", close);
  const head = make("header", {}, tabs, closing);
  dialog.replaceChildren(head, panel);

  /** @param {typeof side} name */
  function show(name) {
    side = name;
    for (const tab of /** @type {HTMLElement[]} */ ([...tabs.children])) {
      const selected = tab.textContent === name;
      tab.ariaSelected = String(selected);
      tab.tabIndex = selected ? 0 : -1;
      if (selected) {
        panel.setAttribute("aria-labelledby", tab.id);
        dialog.setAttribute("aria-labelledby", tab.id);
      }
    }
    panel.replaceChildren(sides[name].element);
    return sides[name].draw();
  }

  /** @param {typeof side} [name] */
  function open(name = side) {
    if (!dialog.open) dialog.showModal();
    return show(name);
  }

  return {
    open,
    /** Files that the visitor has dropped on the page. @param {File[]} files */
    async take(files) {
      const stories = files.filter(({ name }) => name.endsWith(".json"));
      await open(stories.length === files.length ? "Kept" : "Models");
      if (stories.length === files.length) await sides.Kept.take(stories);
      else await sides.Models.take(files);
    },
  };
}
