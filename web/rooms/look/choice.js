/**
 * How one token was chosen: what was likely, what the sampler's steps left of it, where the coin fell; what other settings
 * would have made of it; and other ways to go from here. All numbers are Python's (py/fabella/glass.py).
 */

import { button, make } from "../make.js";
import { bits, boxed, percent, shown, spoken } from "./words.js";

/** @import { Settings } from "../../messages.js" */
/** @import { Candidate, Token } from "./words.js" */

/**
 * @typedef {object} Step
 * @property {string} name
 * @property {Candidate[]} kept
 * @property {number} total
 * @property {number} others
 * @property {boolean} exact
 *
 * @typedef {object} Choice
 * @property {number} position
 * @property {number} token
 * @property {number} picked
 * @property {number} entropy
 * @property {number | null} coin
 * @property {number} begin
 * @property {number} end
 * @property {Candidate[]} candidates
 * @property {number} others
 * @property {Step[]} steps
 *
 * @typedef {Choice & { tokens: Record<string, Token>, again?: Choice }} Described
 *
 * @typedef {object} Ways  what can be done with the token in view
 * @property {(token: number) => void} take  another in its place
 * @property {(text: string) => void} type  a word of the visitor's own
 * @property {(settings: Settings) => void} retell  from here, with these settings
 * @property {(settings: Settings | null) => void} tried  the sliders stand otherwise; null: as they were
 */

/** Candidates, and besides them the one taken. */
const SHOWN = 10;

/** Steps that take no candidate away. */
const KEEP_ALL = ["penalties", "temperature"];

const STEPS = /** @type {Record<string, string>} */ ({
  penalties: "penal\u00adties",
  temperature: "temper\u00adature",
  typical: "typical-p",
  code: "your code",
});

const SLIDERS = /** @type {const} */ ([
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, off: -1 },
  { name: "top_p", label: "Top-p", min: 0.05, max: 1, step: 0.05, off: 1 },
  { name: "top_k", label: "Top-k", min: 0, max: 100, step: 1, off: 0 },
  { name: "min_p", label: "Min-p", min: 0, max: 0.5, step: 0.01, off: 0 },
]);

/** @param {number} id @param {Candidate[]} among */
const probabilityOf = (id, among) => among.find(([other]) => other === id)?.[2] ?? 0;

/** What the coin was thrown over: what the last step left. @param {Choice} choice */
const left = ({ steps, picked, coin, candidates }) =>
  coin === null ? [/** @type {Candidate} */ ([picked, 0, 1])] : (steps.at(-1)?.kept ?? candidates);

/**
 * Which step took a candidate away, if one did: of a step that left more than are noted, nobody knows.
 * @param {number} id
 * @param {Choice} choice
 */
const takenBy = (id, { steps }) =>
  steps.find(
    ({ name, kept, total }) =>
      ![...KEEP_ALL, "code"].includes(name) && total <= kept.length && !probabilityOf(id, kept),
  )?.name;

/** Whether the visitor's own code chose it. @param {Choice} choice */
const byCode = ({ steps }) => steps.at(-1)?.name === "code";

/** @param {string} name */
const called = (name) => STEPS[name] ?? name;

/** The view, of one token at a time. */
export class ChoiceView {
  element = make("div", { class: "look-choice" });
  #head = make("p", { class: "look-head" });
  #bars = make("ol", { class: "look-bars" });
  #legend = make("p", { class: "hint look-key" });
  #coin = make("div", { class: "look-coin" });
  #table = make("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Step by step" });
  #own = make("input", { type: "text", id: "look-own", dir: "auto", autocomplete: "off", enterkeyhint: "go" });
  #retell = button("Retell from here", () => this.ways.retell(this.#settings(false)));
  #again = button("Throw again", () => this.ways.retell(this.#settings(true)));
  #reset = button("As it was", () => this.#put(this.settings));
  /** @type {Record<string, HTMLInputElement>} */
  #sliders = {};
  /** @type {Record<string, HTMLElement>} */
  #values = {};
  /** With which the text in view was told. @type {Settings | null} */
  settings = null;
  #drawn = "";

  /** @param {Ways} ways */
  constructor(ways) {
    this.ways = ways;
    const typing = make("p", { class: "look-own" }, make("label", { for: "look-own" }, "Or a word of your own"));
    const go = button("Take it", () => this.#typed());
    typing.append(this.#own, go);
    this.#own.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return;
      event.preventDefault(); // the form around it would tell a story
      this.#typed();
    });
    const other = make(
      "fieldset",
      { class: "look-settings" },
      make("legend", {}, "With other settings"),
      ...this.#rows(),
    );
    const acts = make("p", { class: "actions" }, this.#retell, this.#again, this.#reset);
    other.append(acts);
    const steps = make("details", {}, make("summary", {}, "Step by step"), this.#table);
    this.element.append(this.#head, this.#legend, this.#bars, typing, this.#coin, other, steps);
    this.empty("");
  }

  #typed() {
    if (this.#own.value.trim()) this.ways.type(this.#own.value);
    this.#own.value = "";
  }

  #rows() {
    return SLIDERS.map(({ name, label, min, max, step }) => {
      const id = `look-${name}`;
      const slider = make("input", { id, type: "range", min: `${min}`, max: `${max}`, step: `${step}` });
      const value = make("output", { for: id, "aria-live": "off" });
      this.#sliders[name] = slider;
      this.#values[name] = value;
      slider.addEventListener("input", () => this.#moved());
      return make("div", { class: "setting" }, make("label", { for: id }, label), value, slider);
    });
  }

  /** @param {Settings | null} settings */
  #put(settings) {
    if (!settings) return;
    for (const { name } of SLIDERS) this.#sliders[name].value = String(settings[name]);
    this.#moved();
  }

  #moved() {
    for (const { name, off } of SLIDERS) {
      const value = this.#sliders[name].valueAsNumber;
      const text = value === off ? "off" : name === "top_k" ? String(value) : value.toFixed(2);
      this.#values[name].textContent = this.#sliders[name].ariaValueText = text;
    }
    this.ways.tried(this.isMoved ? this.#settings(false) : null);
    this.#retell.disabled = this.#reset.disabled = !this.isMoved;
  }

  /** Whether the sliders stand otherwise than the text was told. */
  get isMoved() {
    return SLIDERS.some(({ name, step }) => {
      const was = Number(this.settings?.[name] ?? 0);
      return Math.abs(this.#sliders[name].valueAsNumber - was) > step / 2;
    });
  }

  /** @param {boolean} anew  with another seed */
  #settings(anew) {
    const settings = { .../** @type {Settings} */ (this.settings) };
    for (const { name, step } of SLIDERS) {
      const value = this.#sliders[name].valueAsNumber;
      if (Math.abs(value - settings[name]) > step / 2) settings[name] = value; // what a slider cannot show stays
    }
    if (anew) settings.seed = "";
    return settings;
  }

  /** The text in view was told with these. @param {Settings} settings */
  use(settings) {
    const same = this.settings && SLIDERS.every(({ name }) => this.settings?.[name] === settings[name]);
    this.settings = settings;
    if (!same) this.#put(settings);
  }

  /** @param {string} words  why there is nothing */
  empty(words) {
    this.#drawn = "";
    this.#head.textContent = words;
    for (const part of [...this.element.children].slice(1)) /** @type {HTMLElement} */ (part).hidden = true;
  }

  /**
   * @param {Described} described
   * @param {boolean} open  whether the token is not shown yet, and may still become another
   * @param {boolean} isLost  whether nobody knows any more who chose it
   */
  draw(described, open, isLost) {
    const state = JSON.stringify([described, open, isLost]);
    if (state === this.#drawn) return;
    const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.dataset.token;
    this.#drawn = state;
    for (const part of this.element.children) /** @type {HTMLElement} */ (part).hidden = false;
    const { tokens, entropy, again } = described;
    const uncertain = make("b", {}, `Unsure by ${bits(entropy).toFixed(1)} bits`);
    const many = Math.exp(entropy);
    const as =
      many < 1.1
        ? "it is all but certain"
        : `as if choosing among ${many.toFixed(many < 10 ? 1 : 0)} equally likely ones`;
    this.#head.replaceChildren(uncertain, `: ${as}.`);
    this.#bars.replaceChildren(...this.#ranked(described, open, isLost));
    this.#coin.replaceChildren(...(isLost ? [make("p", {}, LOST)] : decided(again ?? described, tokens, described)));
    this.#legend.replaceChildren(
      make("span", { class: "look-before" }),
      again ? " as it was drawn, " : " the model says, ",
      make("span", { class: "look-after" }),
      again ? " with your settings" : " left to draw from",
    );
    this.#table.replaceChildren(table(again ?? described, tokens));
    this.#again.disabled = described.coin === null;
    if (focused) /** @type {HTMLElement | null} */ (this.#bars.querySelector(`[data-token="${focused}"]`))?.focus();
  }

  /** @param {Described} described @param {boolean} open @param {boolean} isLost */
  #ranked(described, open, isLost) {
    const { again, token, picked, tokens } = described;
    const now = again ?? described;
    const named = [token, picked, now.picked];
    const candidates = described.candidates.filter(([id], rank) => rank < SHOWN || named.includes(id));
    const before = again ? left(described) : described.candidates;
    const after = left(now);
    const most = Math.max(...before.map(([, , one]) => one), ...after.map(([, , one]) => one), 1e-9);
    const rows = candidates.map(([id]) => {
      const one = tokens[id];
      const [was, is] = [probabilityOf(id, before), probabilityOf(id, after)];
      const cut = takenBy(id, now);
      const taken = id === token;
      const notes = [
        taken && (open ? "comes next" : "taken"),
        id === picked && !taken && !isLost && "would have come",
        again && id === now.picked && id !== picked && !taken && isKnown(now, described) && "would come now",
        cut && `cut by ${called(cut)}`,
      ];
      const name = make("span", { class: "look-token" }, shown(one));
      const act = taken && !open ? name : button("", () => this.ways.take(id), `Take ${spoken(one)}, ${percent(was)}`);
      if (act !== name) {
        act.append(name);
        act.className = "plain";
        act.dataset.token = String(id);
      }
      const row = line(act, notes.filter(Boolean).join(", "), was, is, most);
      if (taken) row.setAttribute("aria-current", "true");
      return row;
    });
    const ids = candidates.map(([id]) => id);
    const [rest, stay] = [before, after].map((list) => 1 - sum(list.filter(([id]) => ids.includes(id))));
    const others = make("span", { class: "look-token look-others" }, "all others");
    return [...rows, line(others, "", rest > LEAST ? rest : 0, stay > LEAST ? stay : 0, most)];
  }
}

/** What float32 makes of a sum of shares that is 1. */
const LEAST = 5e-7;

/** @param {Candidate[]} candidates */
const sum = (candidates) => candidates.reduce((total, [, , probability]) => total + probability, 0);

/**
 * A candidate's line, and its bars below.
 * @param {HTMLElement} name
 * @param {string} note
 * @param {number} before
 * @param {number} after
 * @param {number} most  the share whose bar takes the whole width
 */
function line(name, note, before, after, most) {
  const box = make("span", { class: "look-bar", "aria-hidden": "true" });
  for (const [part, share] of /** @type {const} */ ([
    ["look-before", before],
    ["look-after", after],
  ])) {
    const length = share / most;
    const bar = make("span", { class: `${part}${length > 1 ? " beyond" : ""}`, ...(!share && { hidden: "" }) });
    bar.style.inlineSize = `${100 * Math.min(length, 1)}%`;
    box.append(bar);
  }
  const shares = [before, after].map((share) =>
    make("span", { class: "look-percent" }, share > 0 ? percent(share) : "–"),
  );
  return make("li", {}, name, make("small", {}, note), ...shares, box);
}

/**
 * Who decided: the coin, where it fell on the running sum of what was left; or who did instead.
 * @param {Choice} choice  or what the settings tried would have made of it
 * @param {Record<string, Token>} tokens
 * @param {Choice} told  as it was
 */
function decided(choice, tokens, told) {
  const { coin, begin, end, picked, steps, token } = choice;
  const isTried = choice !== told;
  const given =
    token !== picked && !isTried ? make("p", {}, "But ", boxed(tokens[token]), " was put in its place.") : "";
  if (byCode(choice)) return [make("p", {}, "Your code chose ", boxed(tokens[picked]), "."), given];
  if (coin === null) return [make("p", {}, "At temperature 0 there is no coin: the likeliest is taken."), given];
  if (!isKnown(choice, told))
    return [make("p", {}, "No coin was thrown here, so none is shown: a retelling throws one.")];
  const strip = make("div", { class: "look-sum", "aria-hidden": "true" });
  /** @param {number} from @param {number} to @param {string} name */
  const segment = (from, to, name) => {
    const part = make("span", { class: name });
    part.style.insetInlineStart = `${100 * from}%`;
    part.style.inlineSize = `${100 * (to - from)}%`;
    strip.append(part);
    return part;
  };
  const last = steps.at(-1);
  if (last && !KEEP_ALL.includes(last.name) && last.total <= last.kept.length) {
    let reached = 0;
    for (const [id, , probability] of last.kept) {
      const part = segment(reached, (reached += probability), id === picked ? "here" : "");
      if (probability > ROOM) part.append(shown(tokens[id]));
    }
  } else if (picked >= 0) segment(begin, end, "here").append(end - begin > ROOM ? shown(tokens[picked]) : "");
  const mark = make("span", { class: "look-mark" });
  mark.style.insetInlineStart = `${100 * coin}%`;
  strip.append(mark);
  const says = make("p", {}, `The coin fell at ${coin.toFixed(4)}`);
  if (picked < 0) says.append(": on which token, the model is being asked …");
  else
    says.append(
      ", on ",
      boxed(tokens[picked]),
      `, which has the stretch from ${begin.toFixed(4)} to ${end.toFixed(4)}.`,
    );
  return [strip, says, given];
}

/** Whether the coin is known: none is where another decided. @param {Choice} choice @param {Choice} told  as it was */
const isKnown = (choice, told) => choice.coin === null || told.coin !== null;

const LOST =
  "Your code had a hand in this text. Whether it chose this token, or the coin did, is not known any more: these are the " +
  "sampler’s numbers.";

/** The share of the running sum that has room for a token's text. */
const ROOM = 0.12;

/** What each step left, in columns. @param {Choice} choice @param {Record<string, Token>} tokens */
function table({ candidates, steps, others }, tokens) {
  const head = make("tr", {}, make("td"), make("th", { scope: "col" }, "model"));
  for (const { name } of steps) head.append(make("th", { scope: "col" }, called(name).replace("-", "\u2011")));
  const rows = candidates.map(([id, , truth]) => {
    const row = make("tr", {}, make("th", { scope: "row" }, shown(tokens[id])), make("td", {}, hundredths(truth)));
    for (const { kept, total } of steps) {
      const share = probabilityOf(id, kept);
      row.append(make("td", {}, share ? hundredths(share) : total > kept.length ? "?" : "–"));
    }
    return row;
  });
  const rest = make("tr", {}, make("th", { scope: "row" }, "others"), make("td", {}, hundredths(others)));
  const count = make("tr", {}, make("th", { scope: "row" }, "left"), make("td", {}, "all"));
  for (const { others, total, name } of steps) {
    rest.append(make("td", {}, others > LEAST ? hundredths(others) : "–"));
    count.append(make("td", {}, KEEP_ALL.includes(name) ? "all" : String(total)));
  }
  const caption = make("caption", {}, "What each step left of the probabilities, in %");
  return make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...rows, rest, count));
}

/** @param {number} share */
const hundredths = (share) => percent(share).replace(" %", "").replace(" ", "");
