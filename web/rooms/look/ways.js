/** The other ways that a text has gone, and the turns to them. */

import { branches } from "../../leaf.js";
import { button, make } from "../make.js";

/** @import { Leaf, Turn } from "../../leaf.js" */

export class Ways {
  element = make("p", { class: "actions look-branches" });

  /** @param {(leaf: Leaf, turn: number) => void} turnTo */
  constructor(turnTo) {
    this.turnTo = turnTo;
  }

  /** @param {{ leaf: Leaf, turn: Turn } | null} subject  whose branches these are; null: nothing is shown */
  draw(subject) {
    const all = subject ? branches(subject.leaf, subject.turn.id) : [];
    this.element.hidden = all.length < 2;
    if (!subject || all.length < 2) return;
    const { leaf, turn } = subject;
    const at = all.indexOf(turn.id);
    const back = button("‹", () => this.turnTo(leaf, all[at - 1]), "The way before");
    const forth = button("›", () => this.turnTo(leaf, all[at + 1]), "The next way");
    back.disabled = at === 0;
    forth.disabled = at === all.length - 1;
    const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.ariaLabel;
    this.element.replaceChildren("Ways it has gone: ", back, `${at + 1}/${all.length}`, forth);
    const again = [back, forth].find(({ ariaLabel }) => ariaLabel === focused);
    (again?.disabled ? [back, forth].find(({ disabled }) => !disabled) : again)?.focus();
  }
}
