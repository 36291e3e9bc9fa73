/** The story on the page, and how it ended. */

import { element } from "../dom.js";
import { path } from "../leaf.js";
import { phase, watch } from "../state.js";
import { ending, figuresOf } from "../words.js";

/** Paragraphs that grow word by word. */
class Paragraphs {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
  }

  clear() {
    this.element.replaceChildren();
  }

  /**
   * Adds text at the end; every newline closes a paragraph. The element's textContent is the story to the letter.
   * @param {string} text
   * @param {boolean} given  whether the text is the visitor's own
   */
  add(text, given) {
    for (const line of text.match(/[^\n]*\n|[^\n]+/g) ?? []) {
      let paragraph = this.element.lastElementChild;
      if (!paragraph || paragraph.textContent?.endsWith("\n")) {
        paragraph = this.element.appendChild(document.createElement("p"));
        paragraph.setAttribute("dir", "auto"); // from right to left, if the text says so
        if (line === "\n") paragraph.className = "blank";
      }
      if (given) {
        const last = paragraph.lastElementChild ?? paragraph.appendChild(document.createElement("span"));
        last.className = "given";
        last.append(line);
      } else {
        paragraph.append(line);
        paragraph.normalize();
      }
    }
  }
}

/** @param {{ nextWord: () => void }} actions */
export function mountStory({ nextWord }) {
  const box = element("story", HTMLElement);
  const before = element("told-before", HTMLElement);
  const endingBox = element("ending", HTMLElement);
  const reason = element("reason", HTMLElement);
  const figures = element("figures", HTMLElement);
  const earlier = element("earlier", HTMLElement);
  const bar = /** @type {HTMLElement} */ (document.querySelector(".bar"));
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const paragraphs = new Paragraphs(box);
  let drawn = { turn: "", prompt: "", text: "" }; // of the story

  /** Scrolls to where the story begins, unless that is in sight. Its end is not followed: no reader is so fast. */
  function bringIntoView() {
    const { top } = box.getBoundingClientRect();
    const covered = getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0;
    if (top < covered || top > innerHeight * 0.75)
      box.scrollIntoView({ behavior: calm.matches ? "instant" : "smooth" });
  }

  // A screen reader hears the story when it is whole.
  watch(
    (state) => [phase(state)],
    (phase) => {
      box.ariaBusy = String(phase === "telling");
    },
  );
  watch(
    ({ leaf, mode }) => [leaf, mode],
    (leaf, mode) => {
      box.hidden = mode === "chat";
      before.hidden = leaf !== null || mode === "chat";
      const [prompt, told] = leaf?.kind === "story" ? path(leaf) : [];
      if (!leaf || !prompt || !told) {
        if (drawn.turn) paragraphs.clear();
        drawn = { turn: "", prompt: "", text: "" };
        endingBox.hidden = !leaf || leaf.kind === "story";
        return;
      }
      const turn = `${leaf.id} ${told.id}`;
      if (turn !== drawn.turn || !prompt.text.startsWith(drawn.prompt) || !told.text.startsWith(drawn.text)) {
        const isNew = turn !== drawn.turn;
        const goesOn = told.text !== "" && drawn.text.startsWith(told.text); // another way, from where the reader is
        drawn = { turn, prompt: "", text: "" };
        paragraphs.clear();
        if (isNew && !goesOn) bringIntoView();
      }
      paragraphs.add(prompt.text.slice(drawn.prompt.length), true);
      paragraphs.add(told.text.slice(drawn.text.length), false);
      drawn = { turn, prompt: prompt.text, text: told.text };
    },
  );
  watch(
    ({ leaf, request, model }) => [leaf, request, model?.context],
    (leaf, request, context) => {
      const turn = leaf ? path(leaf).at(-1) : undefined;
      const told = turn?.role === "assistant" && turn.reason !== null && request?.turn !== turn.id ? turn : null;
      endingBox.hidden = !told;
      if (!told?.reason || !leaf) return;
      endingBox.dataset.reason = told.reason;
      [, reason.textContent] = ending(told.reason, context ?? 0, leaf.kind);
      figures.textContent = figuresOf(told);
    },
  );
  watch(
    ({ complaint, leaf, worker }) => [complaint, leaf, worker],
    (complaint, leaf, worker) => {
      earlier.hidden = !complaint || worker === "failed" || !leaf;
      earlier.textContent = leaf?.kind === "chat" ? "What was said before:" : "The story before:";
    },
  );
  watch(
    ({ keeping }) => [keeping],
    (keeping) => {
      element("not-kept", HTMLElement).textContent = keeping;
    },
  );
  // There the space bar shows the next word, and writes none.
  watch(
    ({ request, pace }) => [request?.id, pace],
    (telling, pace) => {
      if (telling && pace === "a word")
        element(document.body.dataset.mode === "chat" ? "chat" : "story", HTMLElement).focus();
    },
  );
  box.addEventListener("click", nextWord);
}
