/**
 * Keeps what stands on the page: the leaf on this machine, as it grows, and in this tab what a reload shall not lose.
 */

import { read, write } from "./address.js";
import { fetchLeaf, keep, whyNot } from "./kept.js";
import { last, path } from "./leaf.js";
import { recall, remember, tab } from "./memory.js";
import { change, current, watch } from "./state.js";

/** @import { Leaf } from "./leaf.js" */
/** @import { State } from "./state.js" */

/** Milliseconds between two writings of a text that grows. */
const OFTEN = 900;

/** @typedef {Pick<State, "prompt" | "settings" | "mode" | "system"> & { leaf: string, model: string, chosen: string }} Remembered
 *     model: for which the settings are; chosen: the model that the visitor chose, "" for the page's own */

/** What stood in this tab before a reload. @returns {Remembered | null} */
export function remembered() {
  const text = recall("state", tab());
  return text ? JSON.parse(text) : null;
}

/** The leaf that stood in this tab: as the tab remembers it, or as it was kept last. @param {string} id */
export async function restoreLeaf(id) {
  const text = recall("leaf", tab());
  const inTab = text ? /** @type {Leaf} */ (JSON.parse(text)) : undefined;
  const leaf = inTab?.id === id ? inTab : await fetchLeaf(id).catch(() => undefined);
  if (leaf && !current().leaf) change({ leaf: finished(leaf) });
}

/** A text in the middle of which the page was left has stopped there. @param {Leaf} leaf @returns {Leaf} */
export function finished(leaf) {
  const stopped = /** @type {const} */ ({ reason: "stopped" });
  const turns = leaf.turns.map((turn) => (turn.role === "assistant" && !turn.reason ? { ...turn, ...stopped } : turn));
  return { ...leaf, turns };
}

/** From now on keeps everything that changes. @param {string} own  the id of the page's own model */
export async function startKeeping(own) {
  /** @type {Leaf | null} */
  let written = current().leaf;
  let timer = 0;

  async function save() {
    clearTimeout(timer);
    timer = 0;
    const { leaf, keeping } = current();
    if (!leaf || leaf === written || keeping || !leaf.turns.some(({ text }) => text)) return;
    written = leaf;
    try {
      await keep(leaf);
    } catch {
      change({ keeping: "There is no room left on this machine: what is told here is lost when the page is closed." });
    }
  }

  watch(
    (state) => [state.prompt, state.settings, state.mode, state.system, state.leaf?.id, state.model?.id],
    (prompt, settings, mode, system, leaf = "", model = "") => {
      const chosen = model === own ? "" : model;
      remember("state", JSON.stringify({ prompt, settings, mode, system, leaf, model, chosen }), tab());
    },
  );
  watch(
    ({ leaf, request, model }) => [request === null ? leaf : null, model],
    (leaf, model) => {
      if (leaf?.kind !== "story" || !model || path(leaf).length !== 2) return;
      const turn = last(leaf);
      if (turn?.reason) history.replaceState(history.state, "", write(leaf, turn, model));
    },
  );

  change({ keeping: await whyNot() });
  watch(
    ({ leaf, request }) => [leaf, request === null],
    (_, over) => {
      if (over) save();
      else timer ||= setTimeout(save, OFTEN);
    },
  );
  addEventListener("pagehide", () => {
    const { leaf } = current();
    remember("leaf", leaf ? JSON.stringify(leaf) : "", tab()); // the database might be too slow
    save();
  });
  document.addEventListener("visibilitychange", () => document.hidden && save());
}

/** Whether the address names another story than the one that stands here. */
export function isAnother() {
  const { prompt, seed } = read(location.hash);
  if (prompt === null) return false;
  const { leaf } = current();
  const [given, told] = leaf?.kind === "story" ? path(leaf) : [];
  return given?.text !== prompt || (seed !== "" && told?.settings?.seed !== seed);
}
