/**
 * The stories and conversations that are kept on this machine, in the browser's own database, and as a JSON file.
 */

/** @import { Leaf } from "./leaf.js" */

const DATABASE = "fabella";
const STORE = "leaves";

/** The version of the JSON file's form. */
const FORM = 1;

/** @type {Promise<IDBDatabase> | null} */
let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} use
 * @returns {Promise<T>} once it is written
 */
async function within(mode, use) {
  const transaction = (await database()).transaction(STORE, mode);
  const request = use(transaction.objectStore(STORE));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error ?? request.error);
  });
}

/** Why nothing can be kept here, in words; "" if it can. */
export async function whyNot() {
  try {
    await within("readonly", (store) => store.count());
    return "";
  } catch {
    return "This window keeps nothing: it is private, or the browser does not let this page keep anything.";
  }
}

/**
 * Keeps a leaf, unless another tab has meanwhile kept another version of it.
 * @param {Leaf} leaf
 * @param {number} [known]  `changed` of the version that this one came of; without it there should be none
 * @returns {Promise<boolean>} whether it is kept
 */
export async function keep(leaf, known) {
  const transaction = (await database()).transaction(STORE, "readwrite");
  const store = transaction.objectStore(STORE);
  let free = false;
  store.get(leaf.id).onsuccess = ({ target }) => {
    const there = /** @type {IDBRequest<Leaf | undefined>} */ (target).result;
    free = !there || there.changed === known || there.changed === leaf.changed;
    if (free) store.put(leaf);
  };
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(free);
    transaction.onabort = () => reject(transaction.error);
  });
}

/**
 * @param {string} id
 * @param {string} title
 */
export async function rename(id, title) {
  const leaf = await fetchLeaf(id);
  if (leaf) await within("readwrite", (store) => store.put({ ...leaf, title }));
}

/** @param {string} id @returns {Promise<Leaf | undefined>} */
export const fetchLeaf = (id) => within("readonly", (store) => store.get(id));

/** @param {string} id */
export const forget = (id) => within("readwrite", (store) => store.delete(id));

/** All of them, the last changed first. @returns {Promise<Leaf[]>} */
export async function all() {
  const leaves = await within("readonly", (store) => /** @type {IDBRequest<Leaf[]>} */ (store.getAll()));
  return leaves.sort((a, b) => b.changed - a.changed);
}

/** @param {Leaf[]} leaves @returns {string} a JSON file */
export const toJSON = (leaves) => JSON.stringify({ fabella: FORM, leaves }, null, 1);

/**
 * The leaves in a JSON file, of which nothing is believed.
 * @param {string} text
 * @returns {Leaf[]}
 * @throws {Error} whose message says what is wrong
 */
export function fromJSON(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This is no JSON file.");
  }
  if (file?.fabella !== FORM || !Array.isArray(file.leaves)) throw new Error("This is no file of kept stories.");
  return file.leaves.map((/** @type {unknown} */ leaf, /** @type {number} */ number) => {
    const wrong = wrongIn(/** @type {any} */ (leaf));
    if (wrong) throw new Error(`Story ${number + 1} in this file is damaged: ${wrong}.`);
    return leaf;
  });
}

const isText = (/** @type {unknown} */ value) => typeof value === "string" && value.length < 1 << 24;
const isNumber = (/** @type {unknown} */ value) => typeof value === "number" && Number.isFinite(value);
const isIndex = (/** @type {unknown} */ value) => Number.isInteger(value) && /** @type {number} */ (value) >= 0;

/** @param {any} leaf @returns {string} what is wrong in it; "" if nothing */
function wrongIn(leaf) {
  if (typeof leaf !== "object" || leaf === null) return "it is no object";
  if (!/^[0-9a-f]{24}$/.test(leaf.id)) return "its id";
  if (leaf.kind !== "story" && leaf.kind !== "chat") return "its kind";
  if (![leaf.title, leaf.system, leaf.model?.id, leaf.model?.name].every(isText)) return "its title or model";
  if (!isNumber(leaf.changed)) return "its date";
  if (!Array.isArray(leaf.turns) || typeof leaf.picked !== "object" || leaf.picked === null) return "its turns";
  for (const [index, turn] of leaf.turns.entries()) {
    const wrong = wrongInTurn(turn, index);
    if (wrong) return `${wrong} of turn ${index + 1}`;
  }
  for (const [parent, child] of Object.entries(leaf.picked)) {
    if (!leaf.turns[/** @type {number} */ (child)]) return "its branches";
    if (!isIndex(child) || String(leaf.turns[/** @type {number} */ (child)]?.parent ?? "") !== parent)
      return "its branches";
  }
  return "";
}

/** @param {any} turn @param {number} index */
function wrongInTurn(turn, index) {
  if (turn?.id !== index) return "the number";
  if (turn.parent !== null && !(isIndex(turn.parent) && turn.parent < index)) return "the place"; // so there is no circle
  if (turn.role !== "user" && turn.role !== "assistant") return "the role";
  if (!isText(turn.text)) return "the text";
  if (!Array.isArray(turn.tokens) || !turn.tokens.every(isIndex)) return "the tokens";
  const { choices = [] } = turn;
  if (!Array.isArray(choices) || !choices.every((two) => Array.isArray(two) && two.length === 2 && two.every(isIndex)))
    return "the choices";
  if (![turn.seconds, turn.rate, turn.dropped].every(isNumber)) return "the figures";
  if (turn.reason !== null && !["end", "length", "context", "stop", "stopped", "loop", "code"].includes(turn.reason))
    return "the end";
  if (turn.code !== undefined && !isText(turn.code)) return "the code";
  if (turn.settings === null) return "";
  const { seed, ...numbers } = turn.settings ?? { seed: null };
  return isText(seed) && Object.values(numbers).every(isNumber) ? "" : "the settings";
}
