/**
 * The models that are kept on this machine, in the browser's origin private file system (OPFS). The page lists and
 * removes them; the worker (open-model.js) writes and reads them.
 *
 * All pages of an origin share one folder. In it a model has the name of its SHA-256:
 *
 *     <id>.gguf        the file, once all of it is there
 *     <id>.json        its mark: what is known of it, written last
 *     <key>.part       the beginning of a file, in whole blocks that have been compared
 *     <key>.part.json  its note: by what the host's file is known again
 *
 * The key is the id or, where that is not known before the end, says where the file comes from. Whoever opens, writes or
 * removes a file holds the lock of its key.
 */

/** @import { Card, Kept, Usage } from "./messages.js" */

/**
 * @typedef {object} Mark
 * @property {string} name
 * @property {number} bytes
 * @property {string[]} sha256  of each block
 * @property {string | null} url  where it was downloaded; null if it was a file of the visitor's
 * @property {Card | null} card  what it says of itself; null until it has been loaded
 * @property {string[]} pages  that are built around it or offer it and have loaded it
 * @property {boolean} chosen  by the visitor, who alone removes it
 * @property {number} kept_at  milliseconds since 1970
 *
 * @typedef {object} Note
 * @property {import("./fetch-model.js").Version} version  of the host's file
 * @property {string[]} sha256  of each block so far, or fewer of them
 * @property {string[]} pages  as in the mark
 * @property {boolean} chosen
 */

/** Its name says whose it is: an origin may hold pages of others. */
const FOLDER = "fabella-models";

const ID = /^([0-9a-f]{64})\.gguf$/;

/**
 * Handles that are needed: Chromium 156 forgets what it was asked to do with one that is collected as garbage meanwhile,
 * and the answer never comes.
 * @type {Set<FileSystemHandle>}
 */
const needed = new Set();

/**
 * Does something with a handle that nobody else remembers.
 * @template {FileSystemHandle} H
 * @template T
 * @param {H} handle
 * @param {(handle: H) => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function using(handle, work) {
  needed.add(handle);
  try {
    return await work(handle);
  } finally {
    needed.delete(handle);
  }
}

/**
 * The folder of the kept models.
 * @returns {Promise<FileSystemDirectoryHandle | null>} null where the browser has none, or lends none to this page
 */
export async function openFolder() {
  if (!globalThis.navigator.locks || !navigator.storage?.getDirectory) return null;
  try {
    const root = await navigator.storage.getDirectory();
    const folder = await using(root, () => root.getDirectoryHandle(FOLDER, { create: true }));
    needed.add(folder);
    return folder;
  } catch (error) {
    if (error instanceof DOMException) return null; // a private window
    throw error;
  }
}

/** Whether models can be kept here. */
export const available = async () => (await openFolder()) !== null;

/**
 * The models that are kept, the last one first.
 * @returns {Promise<Kept[]>}
 */
export async function list() {
  const folder = await openFolder();
  if (!folder) return [];
  const kept = [];
  for (const id of await ids(folder)) {
    const mark = (await readMark(folder, id)) ?? (await unmarked(folder, id));
    if (mark) kept.push({ id, name: mark.name, bytes: mark.bytes, card: mark.card, kept_at: mark.kept_at });
  }
  return kept.sort((a, b) => b.kept_at - a.kept_at);
}

/**
 * What there is to say of a file whose mark is lost.
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} id
 */
async function unmarked(folder, id) {
  try {
    const { size, lastModified } = await using(await folder.getFileHandle(`${id}.gguf`), (file) => file.getFile());
    return { name: `${id.slice(0, 8)}.gguf`, bytes: size, card: null, kept_at: lastModified };
  } catch (error) {
    if (isNotFound(error)) return null; // it has been removed just now
    throw error;
  }
}

/**
 * Removes a model, once no tab is loading it; one that is running goes on.
 * @param {string} id
 */
export async function remove(id) {
  const folder = await openFolder();
  if (!folder) return;
  const release = await lock(id);
  try {
    await removeFiles(folder, id);
  } finally {
    release();
  }
}

/**
 * How much room this origin uses, and how much it may use, in bytes, and whether the browser has promised to keep it.
 * @returns {Promise<Usage>}
 */
export async function usage() {
  const [{ usage: used = 0, quota = 0 } = {}, persisted = false] = await Promise.all([
    globalThis.navigator.storage?.estimate?.(),
    globalThis.navigator.storage?.persisted?.(),
  ]);
  return { used, quota, persisted };
}

/** Asks the browser, on the page, not to remove what is kept when the machine's disk is full. */
export const persist = async () => (await globalThis.navigator.storage?.persist?.()) ?? false;

// ---- For the worker --------------------------------------------------------------------------------------------------

/**
 * Waits until nobody else has this lock.
 * @param {string} key
 * @param {AbortSignal} [signal]  ends the waiting
 * @returns {Promise<() => void>} gives it back; so does the end of this page or worker
 */
export function lock(key, signal) {
  return new Promise((resolve, reject) => {
    const hold = () => new Promise((release) => resolve(() => release(undefined)));
    navigator.locks.request(`${FOLDER}/${key}`, signal ? { signal } : {}, hold).catch(reject);
  });
}

/**
 * @param {string} key
 * @returns {Promise<(() => void) | null>} null if somebody else has this lock
 */
export function tryLock(key) {
  return new Promise((resolve, reject) => {
    const hold = (/** @type {Lock | null} */ lock) =>
      lock ? new Promise((release) => resolve(() => release(undefined))) : resolve(null);
    navigator.locks.request(`${FOLDER}/${key}`, { ifAvailable: true }, hold).catch(reject);
  });
}

/**
 * @param {FileSystemDirectoryHandle} folder
 * @returns {Promise<string[]>} of the models that are there, with or without a mark
 */
async function ids(folder) {
  const found = [];
  for await (const name of folder.keys()) found.push(ID.exec(name)?.[1] ?? "");
  return found.filter(Boolean);
}

/**
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} id
 * @returns {Promise<Mark | null>} null if there is none, or half of one
 */
export async function readMark(folder, id) {
  const mark = /** @type {Mark | null} */ (await readJSON(folder, `${id}.json`));
  return mark && Array.isArray(mark.sha256) && Array.isArray(mark.pages) ? mark : null;
}

/**
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} id
 * @param {Mark} mark
 */
export const writeMark = (folder, id, mark) => writeJSON(folder, `${id}.json`, mark);

/**
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} key
 * @returns {Promise<Note | null>}
 */
export async function readNote(folder, key) {
  const note = /** @type {Note | null} */ (await readJSON(folder, `${key}.part.json`));
  return note && Array.isArray(note.sha256) && note.version ? note : null;
}

/**
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} key
 * @param {Note} note
 */
export const writeNote = (folder, key, note) => writeJSON(folder, `${key}.part.json`, note);

/**
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} url  absolute
 * @returns {Promise<string | null>} the id of a model that was downloaded there
 */
export async function findByURL(folder, url) {
  for (const id of await ids(folder)) if ((await readMark(folder, id))?.url === url) return id;
  return null;
}

/**
 * Removes a model, its mark first: without the file it would be a lie.
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} id
 */
export async function removeFiles(folder, id) {
  for (const name of [`${id}.json`, `${id}.gguf`]) await removeFile(folder, name);
}

/**
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} key
 */
export async function removePart(folder, key) {
  for (const name of [`${key}.part.json`, `${key}.part`]) await removeFile(folder, name);
}

/**
 * Removes the models that were this page's own once, whole or in part, and that no visitor chose nor another page needs.
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} page
 * @param {string[]} offered  ids of the models that the page has today
 */
export async function removeSuperseded(folder, page, offered) {
  const names = [];
  for await (const name of folder.keys()) names.push(/^([0-9a-f]{64})(\.part)?\.json$/.exec(name) ?? []);
  for (const [name, id, part] of names) {
    if (!id || offered.includes(id)) continue;
    const release = await tryLock(id);
    if (!release) continue; // another tab has it, with the page of before
    try {
      const known = part ? await readNote(folder, id) : await readMark(folder, id);
      if (!known || known.chosen || !known.pages.includes(page)) continue;
      const pages = known.pages.filter((other) => other !== page);
      if (pages.length > 0) await writeJSON(folder, name, { ...known, pages });
      else if (part) await removePart(folder, id);
      else await removeFiles(folder, id);
    } finally {
      release();
    }
  }
}

/**
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} name
 * @returns {Promise<unknown>} null if there is no such file, or it is broken
 */
async function readJSON(folder, name) {
  try {
    const file = await using(await folder.getFileHandle(name), (handle) => handle.getFile());
    return JSON.parse(await file.text());
  } catch (error) {
    if (error instanceof SyntaxError || isNotFound(error)) return null;
    throw error;
  }
}

/**
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} name
 * @param {object} value
 */
async function writeJSON(folder, name, value) {
  const handle = await folder.getFileHandle(name, { create: true });
  const file = await using(handle, () => handle.createSyncAccessHandle());
  try {
    file.truncate(0);
    file.write(new TextEncoder().encode(JSON.stringify(value)), { at: 0 });
  } finally {
    file.close();
  }
}

/**
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} name
 */
async function removeFile(folder, name) {
  try {
    await folder.removeEntry(name);
  } catch (error) {
    if (!isNotFound(error)) throw error;
  }
}

/** @param {unknown} error */
export const isNotFound = (error) => error instanceof DOMException && error.name === "NotFoundError";
