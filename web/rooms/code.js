/** The code that chooses the next token: an editor, a shelf of examples, a console. Python runs it (py/fabella/live.py). */

// @ts-expect-error: the build puts it in (py/fabella/samplers/)
import samplers from "samplers";
import { element } from "../dom.js";
import { last } from "../leaf.js";
import { ownKey, recall, remember } from "../memory.js";
import { openEditor } from "./editor.js";
import { button, dress, make } from "./make.js";

/** @import { House as Given } from "../rooms.js" */

/**
 * @typedef {{ chain: string, examples: { title: string, source: string }[], help: string }} Texts
 * @typedef {Given & { useCode: (source: string) => Promise<boolean>, untouched: () => Promise<unknown> }} House
 */

/** Milliseconds of rest after which an edit is used. */
const REST = 400;

/** Characters that the console keeps, the last ones. */
const CONSOLE = 20_000;

const KEY = "code";

const STYLE = `
  #code { margin-top: 2rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
  #code h2 { margin: 0; }
  #code .row { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem 0.75rem; margin: 0.75rem 0; }
  #code select { padding: 0.45rem; border: 1px solid var(--edge); border-radius: 4px; background: var(--paper);
    color: inherit; font: inherit; max-width: 100%; }
  #code .editor { border: 1px solid var(--edge); border-radius: 4px; overflow: hidden; }
  #code pre { margin: 0.25rem 0; padding: 0.5rem 0.75rem; border: 1px solid var(--rule); border-radius: 4px;
    overflow: auto; font: 0.8125rem/1.45 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }
  #code-console { height: 7.5rem; }
  #code-problem { color: var(--rubric); }
  #code-problem:empty { display: none; }
`;

/** @param {House} house */
export function mount(house) {
  const { current, change, watch, useCode, untouched, goOn, tell } = house;
  const texts = /** @type {Texts} */ (samplers);
  dress(STYLE);
  const section = element("code", HTMLElement);
  const opener = element("code-button", HTMLButtonElement);

  const title = make("h2", { id: "code-title" }, "The code that chooses");
  const hint = make(
    "p",
    { class: "hint" },
    "Python, run in this page: choose() is called before each token, and returns one. Ctrl + Enter runs it; from then on " +
      "each edit counts from the next token on. It sees the texts that it goes on with; it reaches neither the network " +
      "nor what is kept on this machine, and nothing of it is left once the sampler chooses again.",
  );
  const examples = make("select", { id: "code-examples" }, make("option", { value: "" }, "the sampler itself"));
  texts.examples.forEach(({ title }, number) => examples.append(make("option", { value: String(number) }, title)));
  const handBack = button("Let the sampler choose", () => {
    editor.focus(); // the button goes
    untouched();
  });
  const row = make(
    "p",
    { class: "row" },
    button("Run", run),
    button("Reset", reset),
    make("label", { for: "code-examples" }, "Example"),
    examples,
    handBack,
    button("Close", close),
  );
  const guest = make(
    "p",
    { class: "row", role: "status" },
    "This stands in the place of your own, which is kept.",
    button("Back to mine", () => {
      const text = own;
      own = "";
      editor.write(text);
    }),
    button("Keep this one instead", () => {
      own = lent = "";
      changed();
    }),
  );
  const host = make("div", { class: "editor" });
  const says = make("p", { class: "hint", role: "status" });
  const problem = make("p", { id: "code-problem", role: "status" });
  const console = make("pre", { id: "code-console", role: "log", "aria-label": "Console", tabindex: "0" });
  const help = make(
    "details",
    {},
    make("summary", {}, "What logits offers"),
    make("pre", { tabindex: "0", "aria-label": "What logits offers" }, texts.help),
  );
  const heading = make("p", { class: "hint" }, "Console: what print() says");
  section.replaceChildren(title, hint, row, guest, host, says, problem, heading, console, help);

  const kept = recall(ownKey(KEY));
  const editor = openEditor(host, "Code", kept || texts.chain, { run, changed });
  let timer = 0;
  let own = ""; // what the visitor has written, while an example or code from a link stands in its place
  let lent = ""; // the code of a link, which is the visitor's own only once they have changed it
  guest.hidden = true;

  function changed() {
    const text = editor.read();
    guest.hidden = !own;
    if (!own) remember(ownKey(KEY), [texts.chain, lent].includes(text) ? "" : text);
    clearTimeout(timer);
    timer = setTimeout(() => current().code !== null && useCode(text), REST);
  }

  /** Has the code choose: in the story that is told, in one that waits for it, or else in a new one. */
  async function run() {
    clearTimeout(timer);
    const waits = last(current().leaf);
    if (!(await useCode(editor.read())) || current().request) return;
    if (waits?.reason === "code") goOn(waits);
    else tell();
  }

  function reset() {
    examples.value = "";
    editor.write(texts.chain);
    editor.focus();
  }

  function close() {
    section.hidden = true;
    opener.focus();
  }

  const given = [texts.chain, ...texts.examples.map(({ source }) => source)];

  examples.addEventListener("change", () => stand(given[examples.value === "" ? 0 : Number(examples.value) + 1]));

  /** Puts code in the place of the visitor's own, which is kept. @param {string} text */
  function stand(text) {
    const before = own || editor.read();
    own = [...given, text].includes(before) ? "" : before;
    editor.write(text);
  }

  watch(
    ({ code }) => [code],
    (code) => {
      handBack.hidden = code === null;
      opener.textContent = code ? "Your code chooses: change it" : "Change the code that chooses";
      says.textContent = code
        ? "This code chooses the words."
        : "The sampler chooses the words; Run has this code do it.";
    },
  );
  watch(
    ({ codeProblem }) => [codeProblem],
    (wrong) => {
      editor.mark(wrong?.line ?? null);
      problem.textContent = wrong ? `${wrong.line ? `Line ${wrong.line}: ` : ""}${wrong.message}` : "";
    },
  );
  watch(
    ({ printed }) => [printed],
    ({ text }) => {
      if (!text) return;
      console.textContent = `${console.textContent}${text}`.slice(-CONSOLE);
      console.scrollTop = console.scrollHeight;
    },
  );
  watch(
    ({ request }) => [request?.id ?? 0],
    (id) => {
      if (id && current().code !== null) change({ codeProblem: null });
    },
  );

  function open() {
    section.hidden = false;
    section.scrollIntoView({ block: "nearest" });
    editor.focus();
  }

  return {
    open,
    /**
     * Has code choose that came with a link; the visitor's own stays kept.
     * @param {string} text
     * @returns {Promise<boolean>} whether it does
     */
    use(text) {
      open();
      lent = text;
      stand(text);
      clearTimeout(timer);
      return useCode(text);
    },
  };
}
