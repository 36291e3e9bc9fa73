/** What can be done with a story or conversation: another telling, more of it, to copy it, to hand it on. */

import { command, write } from "../address.js";
import { copyText } from "../clipboard.js";
import { element } from "../dom.js";
import { branches, last, plainText } from "../leaf.js";
import { change, current, watch } from "../state.js";
import { canGoOn, isOurs } from "../telling.js";

/** @import { Leaf, Turn } from "../leaf.js" */
/** @import { Card, ModelPart } from "../messages.js" */

/**
 * @param {object} actions
 * @param {(turn: Turn) => void} actions.again
 * @param {(turn: Turn) => void} actions.goOn
 * @param {(leaf: Leaf, id: number) => void} actions.turnTo
 */
export function mountActions({ again, goOn, turnTo }) {
  const retell = element("retell", HTMLButtonElement);
  const more = element("go-on", HTMLButtonElement);
  const keep = element("keep-seed", HTMLButtonElement);
  const choice = element("branches", HTMLElement);
  const done = element("done", HTMLElement);

  /** @param {(leaf: Leaf, turn: Turn) => void} act  with the leaf, and its last turn */
  const withLast = (act) => () => {
    const { leaf } = current();
    const turn = last(leaf);
    if (leaf && turn) act(leaf, turn);
  };
  /** @param {string} text @param {string} what */
  const copy = (text, what) =>
    copyText(text).then((copied) => say(copied ? `${what} is copied.` : "The browser did not allow it."));
  /** @param {string} text */
  const say = (text) => {
    done.textContent = text;
  };
  /** @param {string} id @param {() => void} act */
  const on = (id, act) => element(id, HTMLButtonElement).addEventListener("click", act);

  /** The button that was pressed goes; where Stop is, the visitor can go on. @param {() => void} act */
  const begin = (act) => {
    element("tell", HTMLButtonElement).focus({ preventScroll: true });
    act();
  };

  on(
    "retell",
    withLast((_, turn) => begin(() => again(turn))),
  );
  on(
    "go-on",
    withLast((_, turn) => begin(() => goOn(turn))),
  );
  on(
    "copy",
    withLast((leaf) => copy(plainText(leaf), leaf.kind === "chat" ? "The conversation" : "The story")),
  );
  on(
    "share",
    withLast((leaf, turn) => {
      const url = new URL(write(leaf, turn, current().model), location.href).href;
      copy(url, "A link that tells this very story");
    }),
  );
  on(
    "command",
    withLast((leaf, turn) => copy(command(leaf, turn, fileOf(current().model)), "The command")),
  );
  on("new", () => {
    change({ leaf: null, ended: null });
    element("prompt", HTMLTextAreaElement).focus();
  });
  on(
    "keep-seed",
    withLast((_, { settings }) => {
      change({ settings: { ...current().settings, seed: settings?.seed ?? "" } });
      element("seed", HTMLInputElement).focus();
    }),
  );
  for (const [id, step] of /** @type {const} */ ([
    ["branch-before", -1],
    ["branch-after", 1],
  ])) {
    on(
      id,
      withLast((leaf, turn) => {
        const all = branches(leaf, turn.id);
        const to = all[all.indexOf(turn.id) + step];
        if (to !== undefined) turnTo(leaf, to);
      }),
    );
  }

  watch(
    ({ leaf, request, settings, model, adapter }) => [leaf, request, settings.seed, model, adapter],
    (leaf, request, seed, _model, adapter) => {
      const turn = last(leaf);
      if (!leaf || !turn || request) {
        say("");
        return;
      }
      const story = leaf.kind === "story";
      const all = branches(leaf, turn.id);
      choice.hidden = all.length < 2 || !story;
      element("branch", HTMLElement).textContent = `${all.indexOf(turn.id) + 1}/${all.length}`;
      element("branch-before", HTMLButtonElement).disabled = turn.id === all[0];
      element("branch-after", HTMLButtonElement).disabled = turn.id === all.at(-1);
      retell.hidden = !story || !isOurs(leaf);
      more.hidden = !story || !isOurs(leaf) || !canGoOn(leaf, turn);
      keep.hidden = !story || turn.settings?.seed === seed;
      // Whoever follows a link meets the page with its own adapter, or none; a command has none.
      const asBuilt = Boolean(adapter?.on) === Boolean(adapter?.own);
      const ofSettings = story && isOurs(leaf) && !turn.code; // and of nothing else
      element("share", HTMLButtonElement).hidden = !ofSettings || !asBuilt;
      element("command", HTMLButtonElement).hidden = !ofSettings || Boolean(adapter?.on);
      element("new", HTMLButtonElement).hidden = story;
      element("copy", HTMLButtonElement).textContent = story ? "Copy" : "Copy all";
    },
  );
}

/** @param {Card | null} model */
const fileOf = (model) => /** @type {Partial<ModelPart>} */ (model)?.file ?? `${model?.name}.gguf`;
