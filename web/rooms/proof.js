/**
 * The self-test: this very device computes what the build has noted, and the page says how many bits and tokens agree.
 * What is compared, and how, is py/fabella/selftest.py.
 */

// @ts-expect-error: the build puts it in (py/builder/proof.py)
import noted from "noted";
import { copyText } from "../clipboard.js";
import { element } from "../dom.js";
import { sentence, engineName, wholeNumber } from "../words.js";
import { button, dress, make } from "./make.js";

/** @import { House as Given } from "../rooms.js" */
/** @import { Bridge } from "../bridge.js" */
/** @import { Assets } from "../messages.js" */

/**
 * @typedef {Given & { assets: Assets, question: Bridge["ask"], untouched: () => Promise<unknown> }} House
 *
 * @typedef {{ place: number, expected: string, found: string }} Difference
 * @typedef {{ tokens: number, same: number, differences: Difference[] }} Followed
 * @typedef {object} Result
 * @property {{ positions: number, same: number, bits: number, differences: Difference[] }} logits
 * @property {{ version: string, stories: { prompt: string, f32: Followed, shipped: Followed }[] }} [torch]
 */

const STYLE = `
  #proved progress { width: 100%; margin: 0.4rem 0 }
  #proved p { margin: 0.5rem 0 }
  #proved .agreed { color: var(--rubric) }
  #proved pre { max-height: 20rem; overflow: auto; margin: 0.5rem 0; padding: 0.5rem; border: 1px solid var(--edge);
    font: 0.8125rem/1.45 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
`;

/** @param {House} house */
export function mount(house) {
  dress(STYLE);
  const box = make("div", { id: "proved" });
  const pressed = element("proof", HTMLButtonElement);
  pressed.after(box);
  const said = make("p", { class: "hint", role: "status" });
  const bar = make("progress", { "aria-label": "Self-test", max: "1", value: "0" });
  let busy = false;

  const question = pressed.textContent;
  house.watch(
    ({ model, adapter }) => [model?.id, adapter?.on],
    (_model, _isOn) => {
      pressed.textContent = question; // what was found was of another
      if (!busy) box.replaceChildren();
    },
  );

  async function test() {
    if (busy) return;
    const why = whyNot(house);
    box.replaceChildren(said);
    said.textContent = why;
    if (why) return;
    busy = true;
    try {
      box.append(bar);
      said.textContent = "Computing on this device …";
      if ((await house.untouched()) === "failed") throw new Error("the model does not run");
      const result = await run(house, (share) => {
        bar.value = share;
      });
      bar.remove();
      said.textContent = isRight(result) ? "This device computes all as it should." : verdict(result);
      if (isRight(result)) pressed.textContent = verdict(result);
      box.append(...details(house, result));
    } catch (error) {
      bar.remove();
      said.textContent = `The self-test did not come to its end: ${sentence(/** @type {Error} */ (error).message)}`;
    } finally {
      busy = false;
    }
  }
  return { test };
}

/** Why it cannot be done now; "" if it can. @param {House} house */
function whyNot({ current, assets }) {
  const { model, adapter, request, worker } = current();
  if (worker !== "ready" || !model) return "The model is not ready yet.";
  if (model.id !== assets.model.id) return `What is noted here is of “${assets.model.name}”, the page’s own model.`;
  if (adapter?.on) return "What is noted here is of the model without its adapter: take it off first.";
  return request ? "The model is busy: let it come to its end first." : "";
}

/** @param {House} house @param {(share: number) => void} show @returns {Promise<Result>} */
async function run(house, show) {
  const { id, url, name } = house.assets.model;
  const file = noted.torch && new File([await (await fetch(url)).blob()], name);
  const first = { request: JSON.stringify({ reference: noted, id }), file: file ?? undefined };
  let asked = first;
  for (;;) {
    if (house.current().request) throw new Error("something was told meanwhile; press again");
    const { answer } = await house.question({ type: "call", module: "selftest", alone: true, ...asked }).answer;
    const { done, total, result } = JSON.parse(answer);
    show(done / total);
    if (done === total) return result;
    asked = /** @type {typeof first} */ ({ request: "{}" });
  }
}

/** @param {Result} result */
const isRight = ({ logits, torch }) =>
  logits.differences.length === 0 && (torch?.stories ?? []).every(({ f32 }) => f32.differences.length === 0);

/** @param {Result} result */
const verdict = (result) =>
  isRight(result) ? (result.torch ? "Equals PyTorch ✓" : "Computes right ✓") : "Not the same: see below.";

/** @param {Result} result @returns {string[]} sentences */
function findings({ logits: { positions, same, bits }, torch }) {
  const said = [
    `${wholeNumber(same * bits)} of ${wholeNumber(positions * bits)} bits of logits are those of wasmtime, where the ` +
      `page was built (the shipped file, after each of ${positions} tokens, by their SHA-256).`,
  ];
  if (!torch) return [...said, "Nothing is noted of what PyTorch tells with this model."];
  const sum = (/** @type {"f32" | "shipped"} */ which, /** @type {"same" | "tokens"} */ what) =>
    torch.stories.reduce((sum, story) => sum + story[which][what], 0);
  return [
    ...said,
    `${sum("f32", "same")} of ${sum("f32", "tokens")} tokens are those of PyTorch ${torch.version}, greedily, in ` +
      `${torch.stories.length} stories, both with the file’s 4-bit weights written out as F32.`,
    "As it is shipped, the file is computed with inputs rounded to 8 bits, which PyTorch does not do: so it takes " +
      `PyTorch’s token at ${sum("shipped", "same")} of ${sum("shipped", "tokens")} places.`,
  ];
}

/** @param {House} house @param {Result} result */
function details(house, result) {
  const { engine } = house.current();
  const where = engine ? `Build: ${engineName(engine.simd, engine.threads)}.` : "";
  const sentences = [...findings(result), where];
  const shown = sentences.map((text) => make("p", { class: "hint" }, text));
  const text = report(house, result, sentences);
  const done = make("p", { class: "hint", role: "status" });
  const copy = button("Copy the report", async () => {
    done.textContent = (await copyText(text)) ? "The report is copied." : "The browser did not allow it.";
  });
  const right = isRight(result);
  const advice = "Please report this to whoever keeps the page, with the text below: that should never happen.";
  return [
    ...shown,
    ...(right ? [] : [make("p", { class: "agreed" }, advice), make("pre", { tabindex: "0" }, text)]),
    make("p", { class: "actions" }, copy),
    done,
  ];
}

/** All of it as text. @param {House} house @param {Result} result @param {string[]} sentences */
function report({ assets: { model } }, result, sentences) {
  const lines = [
    `Fabella’s self-test: ${verdict(result)}`,
    `Model: ${model.name}, SHA-256 ${model.id}`,
    ...sentences,
    `Browser: ${navigator.userAgent}`,
    `Page: ${document.querySelector("meta[name=version]")?.getAttribute("content")}`,
  ];
  /** @param {string} title @param {Difference[]} differences */
  const tell = (title, differences) => {
    if (differences.length > 0) lines.push("", `${title}:`);
    for (const { place, expected, found } of differences)
      lines.push(`after token ${place}: expected ${expected}; found ${found}`);
  };
  tell("Logits (the first 64 bits of their SHA-256, and the likeliest token)", result.logits.differences);
  for (const { prompt, f32 } of result.torch?.stories ?? []) tell(`PyTorch, F32, “${prompt}”`, f32.differences);
  return `${lines.join("\n")}\n`;
}
