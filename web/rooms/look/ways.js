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

  /** @param {Leaf | undefined} leaf  nothing is shown without one @param {Turn} [turn]  of it, whose branches these are */
  draw(leaf, turn) {
    const all = leaf && turn ? branches(leaf, turn.id) : [];
    this.element.hidden = all.length < 2;
    if (!leaf || !turn || all.length < 2) return;
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
