/** The conversation: the turns, what can be done with each, and what the model no longer sees. */

import { element } from "../dom.js";
import { branches, path } from "../leaf.js";
import { copyText } from "../clipboard.js";
import { ending, figuresOf } from "../words.js";
import { button } from "./make.js";
import { Blocks } from "./markdown.js";

/** @import { Leaf, Turn } from "../leaf.js" */
/** @import { House } from "../rooms.js" */

/** Pixels from its end within which the reader is taken to follow the conversation. */
const NEAR = 120;

/** @param {House} house */
export function mount(house) {
  const { current, watch } = house;
  const box = element("chat", HTMLElement);
  /** By the leaf's id and the turn's. @type {Map<string, TurnView>} */
  let views = new Map();
  let editing = -1;
  let answering = -1;
  let asked = -1; // the last request that was drawn
  const composer = element("composer", HTMLElement);
  /** Pixels of the conversation that lie below what is in sight: above the composer, which stands at the window's end. */
  const gap = () => box.getBoundingClientRect().bottom - (innerHeight - composer.offsetHeight);

  /** @param {number} id  of the turn of the visitor's that is to be said otherwise; -1: none */
  function edit(id) {
    editing = id;
    draw();
    if (id < 0) element("prompt", HTMLTextAreaElement).focus();
  }

  /** @param {Turn} turn @param {string} text */
  function edited(turn, text) {
    if (text.trim() && !house.edit(turn, text)) return; // the model is busy: what was written stays
    edit(-1);
  }

  /** Turns to another branch; the focus goes with it. @param {Leaf} leaf @param {number} id @param {string} label */
  function turnTo(leaf, id, label) {
    house.turnTo(leaf, id);
    const view = views.get(`${leaf.id} ${id}`)?.element;
    const same = [...(view?.querySelectorAll("button") ?? [])].find((button) => button.ariaLabel === label);
    const other = /** @type {HTMLButtonElement | null} */ (view?.querySelector("button:not(:disabled)"));
    (same && !same.disabled ? same : other)?.focus();
  }

  function draw() {
    const { leaf, request, mode, model } = current();
    box.hidden = mode !== "chat";
    const turns = leaf?.kind === "chat" ? path(leaf) : [];
    const follows = Math.abs(gap()) < NEAR;
    /** @type {typeof views} */
    const drawn = new Map();
    const unseen = Math.max(0, ...turns.map(({ dropped }) => dropped));
    /** @type {Node[]} */
    const nodes = [];
    for (const [index, turn] of turns.entries()) {
      if (!leaf) break;
      if (unseen > 0 && index === unseen) nodes.push(line());
      const key = `${leaf.id} ${turn.id}`;
      const view = views.get(key) ?? new TurnView(house, { edit, edited, turnTo });
      view.draw(leaf, turn, {
        busy: request !== null,
        told: request?.turn === turn.id,
        editing: editing === turn.id,
        ours: house.isOurs(leaf),
        isLast: index === turns.length - 1,
      });
      drawn.set(key, view);
      nodes.push(view.element);
    }
    views = drawn;
    if (nodes.length !== box.childNodes.length || nodes.some((node, index) => node !== box.childNodes[index])) {
      box.replaceChildren(...nodes);
    }
    const told = turns.at(-1);
    // A screen reader hears an answer once, when it is whole.
    if (request && request.turn !== null) answering = request.turn;
    else if (told && told.id === answering && told.reason) {
      element("answered", HTMLElement).textContent = told.text;
      answering = -1;
    }
    box.dataset.empty = turns.length ? "" : `Say something to ${model?.name ?? "the model"}.`;
    const isNew = request !== null && request.id !== asked;
    if (request) asked = request.id;
    if (turns.length > 0 && (follows || isNew)) {
      scrollBy({ top: isNew ? gap() : Math.max(gap(), 0), behavior: "instant" });
    }
  }

  watch(
    ({ leaf, request, mode, model }) => [leaf, request, mode, model],
    (..._) => draw(),
  );
  box.addEventListener("click", ({ target }) => {
    if (target instanceof Element && !target.closest("button, a, textarea")) house.nextWord();
  });
  return { edit };
}

/** What stands where the model's sight begins. */
function line() {
  const line = document.createElement("p");
  line.className = "unseen";
  line.textContent = "What stands above no longer fits, and the model does not see it.";
  return line;
}

/** One turn on the page. */
class TurnView {
  element = document.createElement("article");
  #who = this.element.appendChild(document.createElement("h2"));
  #said = this.element.appendChild(document.createElement("div"));
  #note = this.element.appendChild(document.createElement("p"));
  #actions = this.element.appendChild(document.createElement("p"));
  #blocks = new Blocks(this.#said, copyText);
  #drawn = "";

  /**
   * @param {House} house
   * @param {object} ways
   * @param {(id: number) => void} ways.edit
   * @param {(turn: Turn, text: string) => void} ways.edited
   * @param {(leaf: Leaf, id: number, label: string) => void} ways.turnTo
   */
  constructor(house, ways) {
    this.house = house;
    this.ways = ways;
    this.element.className = "turn";
    this.#said.className = "said";
    this.#note.className = "hint";
    this.#actions.className = "actions";
  }

  /**
   * @param {Leaf} leaf
   * @param {Turn} turn
   * @param {{ busy: boolean, told: boolean, editing: boolean, ours: boolean, isLast: boolean }} how  ours: the page's
   *     model can go on with it
   */
  draw(leaf, turn, { busy, told, editing, ours, isLast }) {
    const all = branches(leaf, turn.id);
    const state = editing ? "editing" : JSON.stringify([turn.text, turn.reason, all, busy, told, ours, isLast]);
    if (state === this.#drawn) return; // what is being written above all
    this.#drawn = state;
    this.element.dataset.role = turn.role;
    this.#who.textContent = turn.role === "user" ? "You" : leaf.model.name;
    if (editing) this.#form(turn);
    else if (turn.role === "user") this.#said.replaceChildren(plainly(turn.text));
    else {
      this.#blocks.draw(turn.text);
      if (told && !turn.text) this.#said.dataset.waiting = "…";
      else delete this.#said.dataset.waiting;
    }
    this.#note.textContent = told || editing ? "" : note(turn);
    this.#actions.replaceChildren(...(busy || editing ? [] : this.#buttons(leaf, turn, { all, ours, isLast })));
  }

  /** @param {Leaf} leaf @param {Turn} turn @param {{ all: number[], ours: boolean, isLast: boolean }} how */
  #buttons(leaf, turn, { all, ours, isLast }) {
    const { house, ways } = this;
    const at = all.indexOf(turn.id);
    const what = turn.role === "user" ? "question" : "answer";
    const nodes = [];
    if (all.length > 1) {
      const [before, after] = [`The ${what} before`, `The next ${what}`];
      const back = button("‹", () => ways.turnTo(leaf, all[at - 1], before), before);
      const forth = button("›", () => ways.turnTo(leaf, all[at + 1], after), after);
      back.disabled = at === 0;
      forth.disabled = at === all.length - 1;
      nodes.push(back, `${at + 1}/${all.length}`, forth);
    }
    /** @param {() => void} act */
    const asking = (act) => () => {
      element("prompt", HTMLTextAreaElement).focus({ preventScroll: true }); // the button that was pressed goes
      act();
    };
    if (ours && turn.role === "user") nodes.push(button("Edit", () => ways.edit(turn.id)));
    if (ours && turn.role === "assistant")
      nodes.push(
        button(
          "Again",
          asking(() => house.again(turn)),
        ),
      );
    if (ours && isLast && house.canGoOn(leaf, turn))
      nodes.push(
        button(
          "Go on",
          asking(() => house.goOn(turn)),
        ),
      );
    const copy = button("Copy", async () => {
      copy.textContent = (await copyText(turn.text)) ? "Copied" : "Not allowed";
    });
    return [...nodes, copy];
  }

  /** @param {Turn} turn */
  #form(turn) {
    const { edited, edit } = this.ways;
    const box = document.createElement("textarea");
    box.value = turn.text;
    box.dir = "auto";
    box.ariaLabel = "What you say instead";
    box.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") edit(-1);
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
        event.preventDefault();
        edited(turn, box.value);
      }
    });
    const actions = document.createElement("p");
    actions.className = "actions";
    actions.append(
      button("Ask again", () => edited(turn, box.value)),
      button("Leave it", () => edit(-1)),
    );
    this.#said.replaceChildren(box, actions);
    box.focus();
  }
}

/** @param {string} text */
function plainly(text) {
  const paragraph = document.createElement("p");
  paragraph.dir = "auto";
  paragraph.className = "plainly";
  paragraph.textContent = text;
  return paragraph;
}

/** How an answer ended, and how fast it was. @param {Turn} turn */
function note(turn) {
  if (turn.role === "user" || !turn.reason) return "";
  return [ending(turn.reason, 0, "chat")[1], figuresOf(turn)].filter(Boolean).join(" ");
}
