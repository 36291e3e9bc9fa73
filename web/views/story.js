/** The story on the page, and how it ended. */

import { element } from "../dom.js";
import { phase, watch } from "../state.js";
import { ending, pace, tokens } from "../words.js";

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

/** @param {{ keepSeed: () => void }} actions */
export function mountStory({ keepSeed }) {
  const box = element("story", HTMLElement);
  const endingBox = element("ending", HTMLElement);
  const keep = element("keep-seed", HTMLButtonElement);
  const reason = element("reason", HTMLElement);
  const figures = element("figures", HTMLElement);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const paragraphs = new Paragraphs(box);
  let drawn = { id: 0, prompt: 0, text: 0 }; // of the story, so many characters

  /** Scrolls to where the story begins, unless that is in sight. Its end is not followed: no reader is so fast. */
  function bringIntoView() {
    const { top } = box.getBoundingClientRect();
    if (top < 0 || top > innerHeight * 0.6) box.scrollIntoView({ behavior: calm.matches ? "instant" : "smooth" });
  }

  // A screen reader hears the story when it is whole.
  watch(
    (state) => [phase(state)],
    (phase) => {
      box.ariaBusy = String(phase === "telling");
    },
  );
  watch(
    ({ story }) => [story],
    (story) => {
      if (!story) return;
      if (story.id !== drawn.id) {
        drawn = { id: story.id, prompt: 0, text: 0 };
        paragraphs.clear();
        endingBox.hidden = true;
        bringIntoView();
      }
      paragraphs.add(story.prompt.slice(drawn.prompt), true);
      paragraphs.add(story.text.slice(drawn.text), false);
      drawn = { id: story.id, prompt: story.prompt.length, text: story.text.length };
      if (!story.ending) return;
      const { context, seconds, seed } = story.ending;
      endingBox.dataset.reason = story.ending.reason;
      [, reason.textContent] = ending(story.ending.reason, context);
      figures.textContent = `${tokens(story.tokens)} in ${seconds.toFixed(1)} s${pace(story.rate)}. Seed ${seed}.`;
      keep.hidden = !story.ending.keep;
      endingBox.hidden = false;
    },
  );
  keep.addEventListener("click", keepSeed);
}
