/**
 * How one token was chosen: what was likely, what the sampler's steps left of it, where the coin fell; what other settings
 * would have made of it; and other ways to go from here. All numbers are Python's (py/fabella/glass.py).
 */

import { button, make } from "../make.js";
import { bits, percent, shown, spoken } from "./words.js";

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

const STEPS = /** @type {Record<string, string>} */ ({ penalties: "repetition penalty", typical: "typical-p" });

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
  steps.find(({ name, kept, total }) => !KEEP_ALL.includes(name) && total <= kept.length && !probabilityOf(id, kept))
    ?.name;

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
    const typing = make("p", { class: "look-own" }, make("label", { for: "look-own" }, "Or a word of your own:"));
    const go = button("Go on with it", () => this.#typed());
    typing.append(this.#own, go);
    this.#own.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return;
      event.preventDefault(); // the form around it would tell a story
      this.#typed();
    });
    const other = make("fieldset", { class: "look-settings" }, make("legend", {}, "Other settings"), ...this.#rows());
    const acts = make("p", { class: "actions" }, this.#retell, this.#again, this.#reset);
    other.append(acts);
    const steps = make("details", {}, make("summary", {}, "Step by step"), this.#table);
    this.element.append(this.#head, this.#bars, this.#legend, this.#coin, steps, typing, other);
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
   */
  draw(described, open) {
    const state = JSON.stringify([described, open]);
    if (state === this.#drawn) return;
    const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.dataset.token;
    this.#drawn = state;
    for (const part of this.element.children) /** @type {HTMLElement} */ (part).hidden = false;
    const { tokens, entropy, again } = described;
    const uncertain = make("b", {}, `${bits(entropy).toFixed(1)} bits`);
    const many = Math.exp(entropy);
    const among = many < 1.1 ? "it was sure." : `as unsure as among ${many.toFixed(many < 10 ? 1 : 0)} equal ones.`;
    this.#head.replaceChildren("Uncertainty: ", uncertain, `: ${among}`);
    this.#bars.replaceChildren(...this.#ranked(described, open));
    this.#coin.replaceChildren(...coin(again ?? described, tokens, again !== undefined));
    this.#legend.replaceChildren(
      make("span", { class: "look-before" }),
      again ? " as it was drawn from " : " what the model says ",
      make("span", { class: "look-after" }),
      again ? " with the settings below" : " what the sampler left of it",
    );
    this.#table.replaceChildren(table(again ?? described, tokens));
    this.#again.disabled = described.coin === null;
    if (focused) /** @type {HTMLElement | null} */ (this.#bars.querySelector(`[data-token="${focused}"]`))?.focus();
  }

  /** @param {Described} described @param {boolean} open */
  #ranked(described, open) {
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
      const gone = takenBy(id, now);
      const taken = id === token;
      const says = taken ? (open ? "comes next" : "taken") : "";
      const row = make("li", { ...(taken && { "aria-current": "true" }), ...(!is && { class: "gone" }) });
      const name = make("span", { class: "look-token" }, shown(one));
      const act = taken && !open ? name : button("", () => this.ways.take(id), `Take ${spoken(one)}, ${percent(was)}`);
      if (act !== name) {
        act.append(name);
        act.className = "plain";
        act.dataset.token = String(id);
      }
      row.append(act, bars(was, is, most), make("span", { class: "look-percent" }, percent(was)));
      row.append(make("span", { class: "look-percent after" }, is ? percent(is) : "–"));
      const notes = [
        says,
        id === picked && id !== token ? "chance would have taken it" : "",
        gone && `cut by ${called(gone)}`,
      ];
      const note = notes.filter(Boolean).join(", ");
      if (note) row.append(make("small", {}, note));
      return row;
    });
    const ids = candidates.map(([id]) => id);
    const [rest, stay] = [before, after].map((list) => Math.max(0, 1 - sum(list.filter(([id]) => ids.includes(id)))));
    const all = make("li", { class: "look-others" }, make("span", { class: "look-token" }, "all others"));
    all.append(bars(rest, stay, most), make("span", { class: "look-percent" }, rest > 5e-7 ? percent(rest) : "–"));
    all.append(make("span", { class: "look-percent after" }, stay > 5e-7 ? percent(stay) : "–"));
    return [...rows, all];
  }
}

/** @param {Candidate[]} candidates */
const sum = (candidates) => candidates.reduce((total, [, , probability]) => total + probability, 0);

/** @param {number} before @param {number} after @param {number} most */
function bars(before, after, most) {
  const box = make("span", { class: "look-bar", "aria-hidden": "true" });
  for (const [name, share] of /** @type {const} */ ([
    ["look-before", before],
    ["look-after", after],
  ])) {
    const bar = make("span", { class: name });
    bar.style.inlineSize = `${(100 * share) / most}%`;
    box.append(bar);
  }
  return box;
}

/**
 * The running sum of what was left, with the coin on it.
 * @param {Choice} choice
 * @param {Record<string, Token>} tokens
 * @param {boolean} tried  whether it is that of other settings
 */
function coin(choice, tokens, tried) {
  const { coin, begin, end, picked, steps, token } = choice;
  const given = token !== picked && !tried ? make("p", {}, "You took ", shown(tokens[token]), " in its place.") : "";
  if (coin === null) return [make("p", {}, "No coin at temperature 0: the likeliest is taken."), given];
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
      if (probability > 0.12) part.append(shown(tokens[id]));
    }
  } else if (picked >= 0) segment(begin, end, "here").append(end - begin > 0.12 ? shown(tokens[picked]) : "");
  const mark = make("span", { class: "look-mark" });
  mark.style.insetInlineStart = `${100 * coin}%`;
  strip.append(mark);
  const says = make("p", {}, `The coin fell at ${coin.toFixed(4)}`);
  if (picked < 0) says.append(": where that is, only all the numbers can tell …");
  else says.append(", on ", shown(tokens[picked]), ` (${begin.toFixed(4)} to ${end.toFixed(4)} on the running sum).`);
  return [strip, says, given];
}

/** What each step left, in columns. @param {Choice} choice @param {Record<string, Token>} tokens */
function table({ candidates, steps, others }, tokens) {
  const head = make("tr", {}, make("td"), make("th", { scope: "col" }, "model"));
  for (const { name } of steps) head.append(make("th", { scope: "col" }, called(name)));
  const rows = candidates.map(([id, , truth]) => {
    const row = make("tr", {}, make("th", { scope: "row" }, shown(tokens[id])), make("td", {}, percent(truth)));
    for (const { kept, total } of steps) {
      const share = probabilityOf(id, kept);
      row.append(make("td", {}, share ? percent(share) : total > kept.length ? "?" : "–"));
    }
    return row;
  });
  const rest = make("tr", {}, make("th", { scope: "row" }, "others"), make("td", {}, percent(others)));
  const count = make("tr", {}, make("th", { scope: "row" }, "left"), make("td", {}, "all"));
  for (const { others, total, name } of steps) {
    rest.append(make("td", {}, others > 5e-7 ? percent(others) : "–"));
    count.append(make("td", {}, KEEP_ALL.includes(name) ? "all" : String(total)));
  }
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows, rest, count));
}
