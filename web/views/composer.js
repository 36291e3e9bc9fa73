/** What the visitor writes: the box, how long it is, suggestions for it, and the button that has it told. */

import { element } from "../dom.js";
import { last } from "../leaf.js";
import { change, current, phase, watch } from "../state.js";
import { wholeNumber } from "../words.js";

/**
 * @param {object} actions
 * @param {() => void} actions.tell
 * @param {() => void} actions.stop
 * @param {() => void} actions.editLast
 */
export function mountComposer({ tell, stop, editLast }) {
  const form = element("ask", HTMLFormElement);
  const composer = element("composer", HTMLElement);
  const prompt = element("prompt", HTMLTextAreaElement);
  const button = element("tell", HTMLButtonElement);
  const seed = element("seed", HTMLInputElement);
  const count = element("count", HTMLElement);
  const strange = element("strange", HTMLElement);
  const beginnings = element("beginnings", HTMLElement);
  let inField = prompt.value;

  const changed = () => change({ prompt: (inField = prompt.value) });
  changed();
  prompt.addEventListener("input", () => {
    changed();
    if (current().complaint?.field === "prompt") change({ complaint: null });
  });

  form.noValidate = true; // what is wrong is said in this page's own words
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    changed(); // also by a program, of which no event tells
    if (seed.validity.valid) tell();
    else {
      change({ complaint: { message: seed.validationMessage, field: "seed", wayOut: "again" } });
      seed.focus();
    }
  });

  button.addEventListener("click", (event) => {
    if (!current().request) return; // it says Tell, and the form is submitted
    event.preventDefault(); // stopping may make it a submit button before the browser asks what this click does
    if (event.detail < 2) stop(); // the second click of a double click means nothing
  });

  prompt.addEventListener("keydown", (event) => {
    // Enter also ends a composition, as of Japanese; in Safari, which has then ended it, only the key code says so.
    const composing = event.isComposing || event.keyCode === 229;
    if (event.key === "Enter" && !event.shiftKey && !composing) {
      event.preventDefault();
      form.requestSubmit();
    }
    if (event.key === "ArrowUp" && prompt.value === "" && current().mode === "chat") {
      event.preventDefault();
      editLast();
    }
  });

  watch(
    ({ prompt }) => [prompt],
    (text) => {
      if (text !== inField) prompt.value = inField = text;
    },
  );
  watch(
    (state) => [state.mode, state.request !== null, phase(state)],
    (mode, busy, phase) => {
      button.textContent = busy ? "Stop" : mode === "chat" ? "Ask" : "Tell";
      button.type = busy ? "button" : "submit"; // so that Enter in a field never presses Stop
      button.hidden = phase === "failed"; // “Try again” is there
    },
  );
  watch(
    ({ mode }) => [mode],
    (mode) => {
      element("prompt-label", HTMLElement).textContent = mode === "chat" ? "You" : "Prompt";
      element("how", HTMLElement).textContent =
        mode === "chat"
          ? "What you say."
          : "How the story begins; it may be empty. The model goes on with it, and does not converse.";
      const leaf = /** @type {HTMLElement} */ (composer.parentElement);
      // Below the conversation, and above a story: also for whoever goes through the page by keyboard.
      if (mode === "chat") leaf.append(composer);
      else leaf.prepend(composer);
      document.body.dataset.mode = mode;
    },
  );
  watch(
    ({ counted, model }) => [counted, model?.context],
    (counted, context) => {
      count.textContent = counted && context ? `${wholeNumber(counted.tokens)} of ${wholeNumber(context)}` : "";
      count.title = "Tokens, which are words or pieces of words, of those that the model can see";
      const few = counted?.strange === 1 ? "1 character here is" : `${counted?.strange} characters here are`;
      strange.textContent = counted?.strange ? `${few} outside what this model has read: it may lose the thread.` : "";
      count.classList.toggle("over", Boolean(counted && context && counted.tokens >= context));
    },
  );
  beginnings.addEventListener("click", ({ target }) => {
    if (!(target instanceof HTMLButtonElement)) return;
    change({ prompt: target.textContent ?? "" });
    prompt.focus();
  });
  watch(
    ({ model, leaf, mode, prompt }) => [model?.beginnings, mode === "chat" && Boolean(last(leaf)), prompt],
    (texts, talking, prompt) => {
      beginnings.hidden = talking;
      if (!texts) return; // build.py has written down those of the page's own model
      const others = texts.filter((text) => text !== prompt);
      const buttons = others.map((text) => {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "plain";
        button.textContent = button.title = text;
        return button;
      });
      beginnings.replaceChildren(...(buttons.length > 0 ? ["or: ", ...buttons] : []));
    },
  );
  watch(
    ({ complaint }) => [complaint],
    (complaint) => {
      prompt.ariaInvalid = String(complaint?.field === "prompt");
    },
  );
}
