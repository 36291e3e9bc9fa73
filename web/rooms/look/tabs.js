/** The views of which one is seen at a time, by pointer or by keyboard: the ARIA pattern "Tabs". */

import { button, make } from "../make.js";

export class Tabs {
  /**
   * @param {string} title  the id of what names them
   * @param {Record<string, HTMLElement>} views  by their names, which are the tabs'
   * @param {() => void} changed  called when another one is to be seen
   */
  constructor(title, views, changed) {
    this.views = views;
    this.names = Object.keys(views);
    this.changed = changed;
    this.element = make("div", { role: "tablist", "aria-labelledby": title });
    for (const [name, view] of Object.entries(views)) {
      const tab = button(name, () => this.show(name));
      set(tab, { role: "tab", id: `look-tab-${name}`, "aria-controls": `look-${name}` });
      set(view, { role: "tabpanel", id: `look-${name}`, "aria-labelledby": tab.id });
      this.element.append(tab);
    }
    this.element.addEventListener("keydown", (event) => this.#step(event));
    this.seen = this.names[0];
  }

  /** @param {string} name  of the one that is to be seen */
  show(name) {
    this.seen = name;
    this.names.forEach((other, index) => {
      const tab = /** @type {HTMLElement} */ (this.element.children[index]);
      tab.ariaSelected = String(other === name);
      tab.tabIndex = other === name ? 0 : -1;
      this.views[other].hidden = other !== name;
    });
    this.changed();
  }

  /** @param {KeyboardEvent} event */
  #step(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation(); // the page's arrows walk through the text
    const to = this.names.indexOf(this.seen) + step;
    if (!this.names[to]) return;
    this.show(this.names[to]);
    /** @type {HTMLElement} */ (this.element.children[to]).focus();
  }
}

/** @param {HTMLElement} element @param {Record<string, string>} attributes */
function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}
