/**
 * Look inside: how each token of the text was chosen, and other ways that it might have gone. JavaScript draws, Python
 * decides, C computes: all that is shown here is what happened.
 */

import { add, path, set } from "../leaf.js";
import { adopt, toldBefore } from "./look/adopt.js";
import { ChoiceView } from "./look/choice.js";
import { InsideView } from "./look/inside.js";
import css from "./look/look.css";
import { Notes, asked, isGiven } from "./look/notes.js";
import { Python } from "./look/python.js";
import { Tabs } from "./look/tabs.js";
import { Marks, TINTS, canPaint } from "./look/text.js";
import { button, dress, make } from "./make.js";
import { TokensView } from "./look/tokens.js";
import { Tour } from "./look/tour.js";
import { Ways } from "./look/ways.js";
import { percent, spoken } from "./look/words.js";

/** @import { Bridge, Question } from "../bridge.js" */
/** @import { Leaf, Turn } from "../leaf.js" */
/** @import { Settings, Way } from "../messages.js" */
/** @import { House } from "../rooms.js" */
/** @import { Described } from "./look/choice.js" */
/** @import { Note } from "./look/notes.js" */

/** @typedef {House & { question: Bridge["ask"], hush: (id: number) => void, own: string }} Glass  hush: that is answered at once; own: the id of the page's model */

/** Milliseconds for which a slider has to rest before a token is computed for what it says. */
const REST = 200;

/** Milliseconds without a key after which the prompt's tokens are asked for. */
const PAUSE = 80;

/** Candidates of which it is known how many are likelier. */
const FEW = 16;

/** @param {Glass} house */
export function mount(house) {
  const { current, change, watch } = house;
  const opener = /** @type {HTMLElement} */ (document.getElementById("look"));
  const margin = /** @type {HTMLElement} */ (document.getElementById("margin"));
  const story = /** @type {HTMLElement} */ (document.getElementById("story"));
  const chat = /** @type {HTMLElement} */ (document.getElementById("chat"));
  const composer = /** @type {HTMLElement} */ (document.getElementById("composer"));
  const box = /** @type {HTMLElement} */ (document.getElementById("prompt"));
  const bar = /** @type {HTMLElement} */ (document.querySelector(".bar"));
  const isWide = matchMedia("(min-width: 62rem)"); // as look.css has it
  const notes = new Notes(house);
  const python = new Python(house, notes);
  const marks = new Marks();
  /** What is looked at. @type {{ leaf: Leaf, turn: Turn } | null} */
  let subject = null;
  /** The id of the turn that the visitor chose; -1: the last. */
  let chosen = -1;
  let place = 0;
  let isOpen = false;
  let frame = 0;
  let resting = 0;
  /** The settings that the sliders say. @type {Settings | null} */
  let tried = null;
  let questions = 0;
  let adopted = false; // whether that was tried
  let asking = -1; // the last request
  let checked = 0; // tokens of what is being told
  let keeps = false; // whether the next text is looked at where this one is
  let isHidden = false; // whether the token in view is to be brought into sight, once there is one
  let follows = true; // whether the token in view is the next one, where the reader decides word by word

  // ---- What stands in the margin -------------------------------------------------------------------------------------

  dress(css);

  const walker = make("input", { type: "range", id: "look-place", min: "0", max: "0", value: "0" });
  const back = button("‹", () => go(place - 1), "The token before");
  const forth = button("›", () => go(place + 1), "The next token");
  const next = button("Next word", () => house.nextWord());
  const keys = make("span", { class: "keyboard" }, " By keys: Space; or ↓ and Enter.");
  const hint = make("p", { class: "hint", hidden: "" }, OPEN, keys);
  const context = make("p", { class: "look-context", dir: "auto" });
  const heard = make("p", { class: "unseen-only", "aria-live": "polite" });
  const ways = new Ways((leaf, turn) => {
    keeps = true;
    house.turnTo(leaf, turn);
  });
  const tint = make("input", { type: "checkbox", id: "look-tint" });
  const legend = make("p", { class: "hint look-legend", hidden: "" });
  for (const [, name] of TINTS.toReversed()) {
    const [least, most] = { "look-below-50": ["20", "50"], "look-below-20": ["5", "20"], "look-below-5": ["0", "5"] }[
      name
    ];
    legend.append(make("span", { class: name }, `${least} to ${most} %`), " ");
  }
  legend.prepend("How likely the model held each: ", make("span", {}, "50 % and more"), " ");
  const label = make("label", { for: "look-place", class: "unseen-only" }, "Token");
  const walk = make("div", { class: "look-walk" }, back, label, walker, forth, next);
  const words = make("label", { for: "look-tint" }, "Tint the text by probability");
  const tinting = make("p", { class: "look-switch" }, tint, words);
  const choice = new ChoiceView({
    take: (token) => otherwise({ forced: [token] }),
    type: (text) => otherwise({ typed: joined(text) }),
    retell: (settings) => otherwise({}, settings),
    tried: (settings) => {
      tried = settings;
      describe();
    },
  });
  const inside = new InsideView();
  const tokens = new TokensView((word) =>
    python.ask("merges", { text: read, word }).then(
      ({ steps }) => steps,
      () => null,
    ),
  );
  let read = ""; // the prompt whose tokens are shown
  const views = { Choice: choice.element, Inside: inside.element, Tokens: tokens.element };
  const tabs = new Tabs("look-title", views, () => {
    const isText = tabs.seen === "Tokens";
    walk.hidden = context.hidden = tinting.hidden = isText;
    legend.hidden = !tint.checked || isText;
    later();
  });

  const title = make("h2", { id: "look-title" }, "Look inside");
  const close = button("✕", () => toggle(), "Close");
  const tour = new Tour({
    show: (name) => tabs.show(name),
    go,
    isTold: () => known().length > 0,
    tell: () => {
      const { mode, prompt: said } = current();
      if (mode === "chat" && !said.trim()) box.focus();
      else house.tell();
    },
    model: () => current().model,
  });
  const more = make("p", { id: "look-more", class: "actions" }, tour.begin); // and what else there is to look at
  const panel = make(
    "section",
    { class: "look", "aria-labelledby": "look-title", hidden: "" },
    make("div", { class: "look-top" }, make("header", {}, title, close), tour.element),
    tabs.element,
    walk,
    hint,
    context,
    heard,
    ...Object.values(views),
    tinting,
    legend,
    ways.element,
    more,
  );
  if (!canPaint) tint.disabled = true;
  margin.prepend(panel);
  tabs.show("Choice");
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target instanceof HTMLInputElement) event.preventDefault(); // tells no story
  });
  walker.addEventListener("input", () => go(walker.valueAsNumber));
  tint.addEventListener("change", () => {
    legend.hidden = !tint.checked;
    later();
  });

  // ---- What is looked at ---------------------------------------------------------------------------------------------

  /** Finds what is looked at: an answer that the visitor has chosen, or the last text of the model's. */
  function findSubject() {
    const { leaf, mode } = current();
    const told = leaf?.kind === mode ? path(leaf).filter(({ role }) => role === "assistant") : [];
    const turn = told.find(({ id }) => id === chosen) ?? told.at(-1);
    const before = subject;
    subject = leaf && turn ? { leaf, turn } : null;
    if (before && subject && (before.leaf.id !== subject.leaf.id || before.turn.id !== subject.turn.id)) {
      if (subject.turn.id !== chosen) chosen = -1;
      if (keeps) keeps = false;
      else place = 0;
    }
  }

  /** Those of what is looked at, and if the reader decides word by word, the next one. */
  function known() {
    if (!subject) return [];
    const { turn, leaf } = subject;
    return notes.of(leaf, turn).slice(0, turn.tokens.length + (isAtChoice() ? 1 : 0));
  }

  /** Whether the next token is not shown yet, and waits for the reader. */
  function isAtChoice() {
    const { request, pace } = current();
    if (!subject || !request || request.turn !== subject.turn.id || pace !== "a word") return false;
    return notes.of(subject.leaf, subject.turn).length > subject.turn.tokens.length;
  }

  /** Where the turn stands on the page, and what stands there before it. @returns {[Element | null, string]} */
  function standing() {
    if (!subject) return [null, ""];
    const { leaf, turn } = subject;
    const turns = path(leaf);
    if (leaf.kind === "story") return [story, turns[0].text];
    const article = chat.querySelectorAll("article")[turns.findIndex(({ id }) => id === turn.id)];
    return [article?.querySelector(".said") ?? null, ""];
  }

  // ---- Drawing -------------------------------------------------------------------------------------------------------

  /** Draws once more, at the next frame. */
  function later() {
    if (isOpen) frame ||= requestAnimationFrame(draw);
  }

  function draw() {
    frame = 0;
    findSubject();
    if (!isOpen) return;
    const all = known();
    const count = all.length;
    const open = isAtChoice();
    if (open && follows) place = count - 1;
    if (!current().request) place = Math.max(0, Math.min(place, count - 1)); // or it is still to come
    const [element, before] = standing();
    marks.find(element, before, all);
    marks.mark(count ? place : -1);
    marks.tint(tint.checked ? all : []);
    if (isHidden && count) reveal();
    isHidden &&= !count;
    walker.max = String(Math.max(place, count - 1));
    walker.value = String(place);
    back.disabled = place === 0;
    forth.disabled = place >= count - 1;
    if (count === 0) walker.ariaValueText = "none";
    next.hidden = !open;
    hint.hidden = !open || tabs.seen === "Tokens";
    context.replaceChildren(...(count ? surroundings(before, place) : []));
    ways.draw(current().request || tabs.seen === "Tokens" ? null : subject);
    tour.draw();
    if (tabs.seen === "Tokens") {
      drawTokens();
      return;
    }
    const view = tabs.seen === "Inside" ? inside : choice;
    if (!subject && !adopted) adoptOnce();
    if (!subject || (count === 0 && subject.turn.reason === null)) {
      view.empty(sleep() || "Here you see how each word is chosen, once one is.");
      return;
    }
    const { leaf, turn } = subject;
    if (!house.isOurs(leaf) || sleep()) {
      view.empty(house.isOurs(leaf) ? sleep() : OTHERS);
      return;
    }
    if (!current().request && !notes.isWhole(leaf, turn)) {
      const canFind = notes.canFind(leaf, turn);
      view.empty(canFind ? FINDING : UNKNOWN);
      if (canFind) notes.find(leaf, turn, later);
      return;
    }
    if (view === inside) lookInside();
    else describe();
  }

  /** The story that stands on the page at first is looked at like any other. */
  async function adoptOnce() {
    const told = toldBefore(house);
    if (!told) return;
    adopted = true;
    const made = await adopt(told, house);
    if (!made) return;
    notes.keep(made.leaf, made.leaf.turns[1], made.steps);
    change({ leaf: made.leaf });
  }

  /** Why the model says nothing, if it does not. */
  const sleep = () => ({ loading: WAKING, failed: FAILED, ready: "" })[current().worker];

  /** What the visitor writes; if that is nothing, what was said last in a conversation. */
  function written() {
    const { prompt, leaf, mode } = current();
    const said = leaf?.kind === mode && mode === "chat" ? path(leaf).findLast(({ role }) => role === "user") : null;
    return prompt || (said?.text ?? "");
  }

  /** Asks for the prompt's tokens, once the visitor pauses. */
  function drawTokens() {
    if (sleep()) {
      tokens.empty(sleep());
      return;
    }
    clearTimeout(resting);
    resting = setTimeout(async () => {
      const text = written();
      const found = await python.ask("tokens", { text }).catch(({ message }) => message);
      if (text !== written()) return;
      read = text;
      if (typeof found === "string") tokens.empty(found);
      else tokens.draw(found.words);
      tour.draw();
    }, PAUSE);
  }

  /** Asks what the token before the one in view is like inside the model. */
  async function lookInside() {
    if (!subject) return;
    const { leaf, turn } = subject;
    const note = known()[place];
    const number = ++questions;
    if (current().request?.done === null) {
      inside.empty("Once the text is told, you see here what went on inside."); // the model is busy
      return;
    }
    const said = note && (await python.ask("choice", { choice: note.choice }).catch(() => null));
    if (place === 0 && notes.before(leaf, turn) === undefined) await notes.find(leaf, turn, () => {});
    const token = place > 0 ? known()[place - 1]?.token : notes.before(leaf, turn);
    if (!said || number !== questions) return;
    const request = { position: said.position - 1, token, choice: note.choice };
    const found = token === undefined ? null : await python.exactly(leaf, turn, "inside", request);
    if (number !== questions) return;
    if (found) inside.draw(found);
    else inside.empty(UNKNOWN);
    tour.draw();
  }

  /** Which token it is, and what stands before it, in a few words. @param {string} before @param {number} at */
  function surroundings(before, at) {
    const all = known();
    const text = before + told(all, at);
    const short = text.length > 50 ? `…${text.slice(-50).replace(/^\S*\s/, " ")}` : text;
    const which = current().request ? `Token ${at + 1}` : `Token ${at + 1} of ${all.length}`;
    if (!short.trim()) return [make("span", { class: "look-count" }, `${which}, at the beginning`)];
    return [make("span", { class: "look-count" }, `${which}, after `), make("q", {}, short.trim())];
  }

  /** @param {(Note | undefined)[]} all @param {number} at  up to which token */
  const told = (all, at) =>
    all
      .slice(0, at)
      .map((note) => note?.text)
      .join("");

  /** Asks Python about the token in view, and draws what it says. */
  async function describe() {
    const note = known()[place];
    if (!isOpen || !subject) return;
    if (!note?.choice) {
      choice.empty(FINDING);
      return;
    }
    const { leaf, turn } = subject;
    if (turn.settings) choice.use(turn.settings);
    const number = ++questions;
    clearTimeout(resting);
    const settings = tried && { ...tried, seed: turn.settings?.seed ?? "1" };
    let why = "";
    const request = { choice: note.choice, ...(settings && { settings }) };
    /** @type {Described | null} */
    let found = await python.ask("choice", request).catch((error) => {
      why = error.message;
      return null;
    });
    if (!found && settings) found = await python.exactly(leaf, turn, "choice", { ...request, exactly: true });
    if (number !== questions) return;
    if (!found) {
      choice.empty(why);
      return;
    }
    tell(found, note);
    if (settings && found.again && (found.again.picked < 0 || found.again.steps.some(({ exact }) => !exact))) {
      resting = setTimeout(async () => {
        const exact = await python.exactly(leaf, turn, "choice", { ...request, exactly: true });
        if (number === questions && exact) tell(exact, note);
      }, REST);
    }
  }

  /** @param {Described} found @param {Note} note */
  function tell(found, note) {
    const open = isAtChoice() && place === known().length - 1;
    const isLost = note.again === true && subject?.turn.code !== undefined;
    choice.draw(found, open, isLost);
    tour.draw();
    const one = found.tokens[found.token];
    const likelier = found.candidates.findIndex(([id]) => id === found.token);
    const rank = likelier < FEW ? `number ${likelier + 1}` : `not among the ${FEW} likeliest`;
    walker.ariaValueText = `${spoken(one)}, ${percent(note.probability)}, ${rank}`;
    heard.textContent = document.activeElement === walker ? "" : walker.ariaValueText; // or it would be heard twice
  }

  // ---- What the visitor does -----------------------------------------------------------------------------------------

  /** @param {number} to */
  function go(to) {
    const count = known().length;
    const where = Math.max(0, Math.min(to, count - 1));
    follows = where === count - 1;
    if (where !== place) {
      place = where;
      draw();
    }
    reveal();
  }

  /** Scrolls until the token in view is seen, unless it is. */
  function reveal() {
    const rect = marks.range(place)?.getBoundingClientRect();
    if (!rect) return;
    const covered = getComputedStyle(composer).position === "sticky" ? composer.offsetHeight : 0;
    const top = current().mode === "chat" ? 0 : bar.offsetHeight; // it stays in sight along the story
    const bottom = (isWide.matches ? innerHeight : panel.getBoundingClientRect().top) - covered;
    if (rect.top < top || rect.bottom > bottom)
      scrollBy({ top: (rect.top + rect.bottom - top - bottom) / 2, behavior: "instant" });
  }

  /** All of the panel is in the window, wherever the page is scrolled to. */
  function fit() {
    if (!isOpen) return;
    const { top, bottom } = margin.getBoundingClientRect(); // at the page's end a part of a pixel is missing
    panel.style.setProperty("--outside", `${Math.max(0, top) + Math.max(0, innerHeight - bottom)}px`);
  }

  for (const name of ["scroll", "resize"]) addEventListener(name, fit, { passive: true });

  /** A word of the visitor's, with a space before it where one belongs. @param {string} text */
  function joined(text) {
    const [, before] = standing();
    const said = before + told(known(), place);
    return said === "" || /\s$/.test(said) || !/^[\p{L}\p{N}]/u.test(text) ? text : ` ${text}`;
  }

  /**
   * Goes on another way from the token in view.
   * @param {Way} way
   * @param {Settings} [settings]  with others than before
   */
  function otherwise(way, settings) {
    if (!subject || !house.isOurs(subject.leaf) || current().worker !== "ready") return;
    const { turn } = subject;
    const before = turn.settings;
    if (!before) return;
    const shown = turn.tokens.length;
    const beginning = /** @type {Note[]} */ (known().slice(0, place));
    if (beginning.some((note) => !note)) return;
    const isOpenChoice = place >= shown;
    if (current().request) house.abandon();
    const { leaf } = current();
    if (!leaf || !leaf.turns[turn.id]) return;
    const told = turn.tokens.slice(0, place);
    const text = beginning.map((note) => note.text).join("");
    const anew = { ...before, ...settings };
    const its = { ...anew, seed: anew.seed || house.newSeed() };
    // Told with others, these tokens are what the settings say only if they are taken.
    const taken = settings
      ? told.map((token, index) => /** @type {[number, number]} */ ([index, token]))
      : (turn.choices ?? []).filter(([index]) => index < place);
    notes.begin(beginning);
    keeps = !isOpenChoice;
    follows = true;
    walker.focus({ preventScroll: true }); // the button that was pressed goes
    const message = asked(leaf, turn, text, its, { told, ...way });
    if (isOpenChoice)
      house.ask(message, () => set(leaf, turn.id, { settings: its, choices: taken }), { turn: turn.id });
    else
      house.ask(message, () => {
        const made = add(leaf, turn.parent, "assistant", text, its);
        const code = turn.code !== undefined && told.length > 0 ? { code: "" } : {};
        return set(made, made.turns.length - 1, { tokens: told, choices: taken, ...code });
      });
  }

  /** Which tokens the reader took goes down in the leaf: with them it can be told again. */
  function noteTaken() {
    const { leaf, request } = current();
    if (leaf?.kind !== "story" || !request || request.turn === null || request.home !== leaf.id) return;
    const turn = leaf.turns[request.turn];
    const all = notes.of(leaf, turn);
    const last = turn.choices?.at(-1)?.[0] ?? -1;
    /** @type {[number, number][]} */
    const more = [];
    for (let index = Math.max(last + 1, checked); index < turn.tokens.length; index++) {
      const note = all[index];
      if (note && isGiven(note)) more.push([index, note.token]);
    }
    checked = turn.tokens.length;
    if (more.length) change({ leaf: set(leaf, turn.id, { choices: [...(turn.choices ?? []), ...more] }) });
  }

  for (const box of [story, chat]) {
    box.addEventListener(
      "click",
      (event) => {
        if (!isOpen || !(event.target instanceof Element) || event.target.closest("button, a, textarea")) return;
        if (box === chat) chooseAnswer(event.target);
        const hit = marks.at(event);
        if (hit < 0) return;
        event.stopPropagation(); // or it would show the next word
        go(hit);
      },
      { capture: true },
    );
  }

  /** @param {Element} target  in the answer that is to be looked at */
  function chooseAnswer(target) {
    const { leaf } = current();
    const index = [...chat.querySelectorAll("article")].findIndex((article) => article.contains(target));
    const turn = leaf && path(leaf)[index];
    if (turn?.role !== "assistant" || turn.id === subject?.turn.id) return;
    chosen = turn.id;
    place = 0;
    draw();
  }

  document.addEventListener("keydown", (event) => {
    if (!isOpen || event.altKey || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) return;
    const { target, key } = event;
    if (key === "Escape" && !current().request && target instanceof Node && panel.contains(target)) {
      toggle();
      return;
    }
    const typing =
      target instanceof Element &&
      target.closest("textarea, input, select, [contenteditable], .wide, [role=grid], [role=tablist]");
    if (key === " " && target === walker && isAtChoice()) {
      event.preventDefault();
      house.nextWord();
    }
    const across = { ArrowUp: -1, ArrowDown: 1 }[key];
    const candidate = target instanceof Element && target.closest(".look-bars");
    if (across && tabs.seen === "Choice" && (candidate || (isAtChoice() && (!typing || target === walker)))) {
      event.preventDefault();
      const all = /** @type {HTMLElement[]} */ ([...choice.element.querySelectorAll(".look-bars button")]);
      const at = all.indexOf(/** @type {any} */ (target));
      all[Math.max(0, Math.min(at + across, all.length - 1))]?.focus();
      return;
    }
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (typing || !step) return;
    event.preventDefault();
    go(place + step);
  });

  function toggle() {
    isOpen = !isOpen;
    opener.ariaExpanded = String(isOpen);
    panel.hidden = !isOpen;
    document.body.toggleAttribute("data-look", isOpen); // look.css makes room for it
    house.lookOn(isOpen ? (request, steps) => notes.hear(request, steps) : null);
    if (isOpen) {
      isHidden = !isWide.matches; // the sheet lies over the lower half of the window
      fit();
      draw();
      walker.focus({ preventScroll: true });
    } else {
      notes.miss();
      marks.mark(-1);
      marks.tint([]);
      opener.focus({ preventScroll: true });
    }
  }

  watch(
    ({ leaf, request, mode, worker, pace, prompt }) => [leaf, request, mode, worker, pace, prompt],
    (_, request, _mode, worker, ..._others) => {
      if (worker !== "ready") {
        notes.interrupt(); // what was asked of it is not answered any more, and another may say otherwise
        python.forget();
        adopted = false;
      }
      if (request && request.id !== asking) {
        asking = request.id;
        checked = request.message.told?.length ?? 0;
        notes.interrupt();
        chosen = -1;
      }
      noteTaken();
      later();
    },
  );
  return { toggle };
}

const OPEN = "The next word is still open: have it as it would come, or press another one below.";
const WAKING = "The model is still waking up: then it tells you.";
const FAILED = "The model does not run: the page says why.";
const FINDING = "Looking …";
const UNKNOWN = "How this was chosen is not known any more.";
const OTHERS = "Another model wrote this: open that to look inside.";
