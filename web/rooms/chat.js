/** The conversation: the turns, what can be done with each, and what the model no longer sees. */

import { element } from "../dom.js";
import { branches, path } from "../leaf.js";
import { copyText } from "../views/actions.js";
import { ending, pace, tokens } from "../words.js";
import { Blocks } from "./markdown.js";

/** @import { Leaf, Turn } from "../leaf.js" */
/** @import { House } from "../rooms.js" */

/** Pixels from its end within which the reader is taken to follow the conversation. */
const NEAR = 120;

/** @param {House} house */
export function mount(house) {
  const { change, current, watch } = house;
  const box = element("chat", HTMLElement);
  /** By the leaf's id and the turn's. @type {Map<string, TurnView>} */
  let views = new Map();
  let editing = -1;

  /** @param {number} id  of the turn of the visitor's that is being written anew; -1: none */
  function edit(id) {
    editing = id;
    draw();
  }

  /** @param {Turn} turn @param {string} text */
  function edited(turn, text) {
    editing = -1;
    if (text.trim()) house.edit(turn, text);
    draw();
  }

  function draw() {
    const { leaf, request, mode, model } = current();
    box.hidden = mode !== "chat";
    const turns = leaf?.kind === "chat" ? path(leaf) : [];
    const follows = innerHeight + scrollY > document.documentElement.scrollHeight - NEAR;
    /** @type {typeof views} */
    const drawn = new Map();
    const unseen = Math.max(0, ...turns.map(({ dropped }) => dropped));
    /** @type {Node[]} */
    const nodes = [];
    for (const [index, turn] of turns.entries()) {
      if (!leaf) break;
      if (unseen > 0 && index === unseen) nodes.push(line());
      const key = `${leaf.id} ${turn.id}`;
      const view = views.get(key) ?? new TurnView(house, { edit, edited });
      view.draw(leaf, turn, { busy: request !== null, told: request?.turn === turn.id, editing: editing === turn.id });
      drawn.set(key, view);
      nodes.push(view.element);
    }
    views = drawn;
    if (nodes.length !== box.childNodes.length || nodes.some((node, index) => node !== box.childNodes[index])) {
      box.replaceChildren(...nodes);
    }
    box.ariaBusy = String(request !== null);
    box.dataset.empty = turns.length ? "" : `Say something to ${model?.name ?? "the model"}.`;
    if (request && follows) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  }

  watch(
    ({ leaf, request, mode, model }) => [leaf, request, mode, model],
    (..._) => draw(),
  );
  box.addEventListener("click", house.nextWord);
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
  #who = this.element.appendChild(document.createElement("h3"));
  #said = this.element.appendChild(document.createElement("div"));
  #note = this.element.appendChild(document.createElement("p"));
  #actions = this.element.appendChild(document.createElement("p"));
  #blocks = new Blocks(this.#said, copyText);
  #drawn = "";

  /**
   * @param {House} house
   * @param {{ edit: (id: number) => void, edited: (turn: Turn, text: string) => void }} ways
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
   * @param {{ busy: boolean, told: boolean, editing: boolean }} how
   */
  draw(leaf, turn, { busy, told, editing }) {
    const all = branches(leaf, turn.id);
    const state = JSON.stringify([turn.text, turn.reason, all, busy, told, editing]);
    if (state === this.#drawn) return;
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
    this.#actions.replaceChildren(...(busy || editing ? [] : this.#buttons(leaf, turn, all)));
  }

  /** @param {Leaf} leaf @param {Turn} turn @param {number[]} all */
  #buttons(leaf, turn, all) {
    const { house, ways } = this;
    const { leaf: now, model } = house.current();
    const ours = leaf.model.id === model?.id;
    const at = all.indexOf(turn.id);
    const what = turn.role === "user" ? "question" : "answer";
    const nodes = [];
    if (all.length > 1) {
      nodes.push(button("‹", () => house.turnTo(leaf, all[at - 1]), at === 0, `The ${what} before`));
      nodes.push(`${at + 1}/${all.length}`);
      nodes.push(button("›", () => house.turnTo(leaf, all[at + 1]), at === all.length - 1, `The next ${what}`));
    }
    if (ours && turn.role === "user") nodes.push(button("Edit", () => ways.edit(turn.id)));
    if (ours && turn.role === "assistant") nodes.push(button("Again", () => house.again(turn)));
    if (ours && now && house.canGoOn(leaf, turn) && house.last(now)?.id === turn.id) {
      nodes.push(button("Go on", () => house.goOn(turn)));
    }
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
function note({ role, reason, tokens: said, seconds, rate, settings }) {
  if (role === "user" || !reason) return "";
  const figures = `${tokens(said.length)} in ${seconds.toFixed(1)} s${pace(rate)}. Seed ${settings?.seed}.`;
  return [ending(reason, 0, "chat")[1], figures].filter(Boolean).join(" ");
}

/**
 * @param {string} text
 * @param {() => void} act
 * @param {boolean} [disabled]
 * @param {string} [label]
 */
function button(text, act, disabled = false, label = "") {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.disabled = disabled;
  if (label) button.ariaLabel = label;
  button.addEventListener("click", (event) => {
    event.stopPropagation();
    act();
  });
  return button;
}
