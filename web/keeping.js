/**
 * Keeps what stands on the page: the leaf on this machine, as it grows, and in this tab what a reload shall not lose.
 */

import { read, write as addressOf } from "./address.js";
import { fetchLeaf, keep, whyNot } from "./kept.js";
import { finished, last, newId, path } from "./leaf.js";
import { ownKey, recall, remember, tab } from "./memory.js";
import { change, current, watch } from "./state.js";

/** @import { Leaf } from "./leaf.js" */
/** @import { State } from "./state.js" */

/** Milliseconds between two writings of a text that grows. */
const OFTEN = 900;

/** @typedef {Pick<State, "prompt" | "settings" | "mode" | "system"> & { leaf: string, model: string, chosen: string }} Remembered
 *     model: for which the settings are; chosen: the model that the visitor chose, "" for the page's own */

/** What stood in this tab before a reload. @returns {Remembered | null} */
export function remembered() {
  const text = recall(ownKey("state"), tab());
  return text ? JSON.parse(text) : null;
}

/** By the leaf's id: `changed` of the version that this tab has read or written last. @type {Map<string, number>} */
export const versions = new Map();

/** The leaf that stood in this tab: as the tab remembers it, or as it was kept last. @param {string} id */
export async function restoreLeaf(id) {
  const text = recall(ownKey("leaf"), tab());
  const inTab = text ? /** @type {Leaf} */ (JSON.parse(text)) : undefined;
  const inStore = await fetchLeaf(id).catch(() => undefined);
  const isNewer = inTab?.id === id && inTab.changed > (inStore?.changed ?? 0); // the database was too slow
  const leaf = isNewer ? inTab : inStore;
  if (inStore) versions.set(id, inStore.changed);
  if (leaf && !current().leaf) change({ leaf: finished(leaf) });
}

/** From now on keeps everything that changes. @param {string} own  the id of the page's own model */
export async function startKeeping(own) {
  /** @type {Leaf | null} */
  let written = current().leaf;
  let timer = 0;

  let saving = Promise.resolve();

  /** Saves after what is being saved already, whose version it would not know. */
  function save() {
    clearTimeout(timer);
    timer = 0;
    saving = saving.then(write);
  }

  async function write() {
    const { leaf, keeping } = current();
    if (!leaf || leaf === written || keeping || !leaf.turns.some(({ text }) => text)) return;
    written = leaf;
    try {
      const isKept = await keep(leaf, versions.get(leaf.id));
      if (isKept) versions.set(leaf.id, leaf.changed);
      else branchOff(leaf.id);
    } catch (error) {
      const reason = error instanceof DOMException ? error.name : String(error);
      change({
        keeping: `What is told here is lost when the page is closed: the browser could not write it (${reason}).`,
      });
    }
  }

  watch(
    (state) => [state.prompt, state.settings, state.mode, state.system, state.leaf?.id, state.model?.id],
    (prompt, settings, mode, system, leaf = "", model = "") => {
      const chosen = model === own ? "" : model;
      remember(ownKey("state"), JSON.stringify({ prompt, settings, mode, system, leaf, model, chosen }), tab());
    },
  );
  let stood = false; // whether the address is that of a leaf
  const bare = () => location.pathname + location.search;
  watch(
    ({ leaf, request, model, unkept }) => [request === null ? leaf : undefined, model, unkept],
    (leaf, model, unkept) => {
      if (leaf === null && stood) history.replaceState(history.state, "", bare());
      if (leaf !== undefined) stood = leaf !== null;
      if (leaf?.kind !== "story" || !model || leaf.model.id !== model.id || unkept || path(leaf).length !== 2) return;
      const turn = last(leaf);
      if (!turn?.reason) return;
      const toldAgain = turn.code === undefined; // by what an address says
      history.replaceState(history.state, "", toldAgain ? addressOf(leaf, turn, model) : bare());
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
    remember(ownKey("leaf"), leaf ? JSON.stringify(leaf) : "", tab()); // the database might be too slow
    save();
  });
  document.addEventListener("visibilitychange", () => document.hidden && save());
}

/** Another tab has gone on with this leaf: from here on this tab's is a leaf of its own. @param {string} id */
function branchOff(id) {
  const { leaf, request } = current();
  if (leaf?.id !== id) return;
  const own = newId();
  change({ leaf: { ...leaf, id: own }, request: request?.home === id ? { ...request, home: own } : request });
}

/** Whether the address names another story than the one that stands here. */
export function isAnother() {
  const { prompt, seed } = read(location.hash);
  if (prompt === null) return false;
  const { leaf } = current();
  const [given, told] = leaf?.kind === "story" ? path(leaf) : [];
  return given?.text !== prompt || (seed !== "" && told?.settings?.seed !== seed);
}
