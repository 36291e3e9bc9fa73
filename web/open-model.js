/**
 * Where a model's bytes come from: kept on this machine, or from a host or the visitor's disk, and then kept. Where it
 * cannot be kept it is loaded all the same, and what comes back says why.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { BLOCK, hex, hexDigest } from "./bytes.js";
import { Blocks } from "./download.js";
import { ModelDownload } from "./fetch-model.js";
import { KeptFile, LocalFile } from "./kept-file.js";
import { Problem, SILENCE, damagedHere, interrupted, noLongerKept, notKept } from "./problem.js";
import {
  findByURL,
  lock,
  openFolder,
  readMark,
  readNote,
  removeFiles,
  removePart,
  removeSuperseded,
  tryLock,
  using,
  writeMark,
  writeNote,
} from "./store.js";

/** @import { Bytes } from "./bytes.js" */
/** @import { Arrived } from "./fetch-model.js" */
/** @import { Card, Source } from "./messages.js" */
/** @import { Mark } from "./store.js" */

/**
 * @typedef {object} Opened  a model file to be loaded
 * @property {Bytes} file
 * @property {Bytes | null} tokenizer  for a model file of llama2.c's
 * @property {string} id  its SHA-256; of one that is not kept and came without, its name and size
 * @property {string} name  of the file
 * @property {boolean} kept
 * @property {string | null} why  not
 * @property {(card: Card) => Promise<void>} loaded  to be called when the file is no longer needed
 * @property {() => Promise<void>} refused  to be called instead if it cannot run
 *
 * @typedef {object} Wanted  what is known of a model beforehand
 * @property {string} name  for the visitor
 * @property {string | null} id
 * @property {string | null} url  absolute
 * @property {number} bytes  0 if nobody knows
 * @property {string[]} [sha256]  of each block
 * @property {File | null} file  the visitor's
 * @property {File} [tokenizer]  of llama2.c's, beside it
 * @property {boolean} chosen
 */

/** How a sentence about a model begins. */
const NAME = "The model file";

/** Milliseconds between the words of a tab that is loading a model to those that wait for it. */
const BEAT = 250;

/**
 * @param {Source} source
 * @param {{ base: string, offered: string[] }} page  its URL, and the ids of the models that it has
 * @param {(arrived: Arrived) => void} hear
 * @param {() => void} waiting  called when this thread may turn to longer work: the rest happens elsewhere
 * @returns {Promise<Opened>}
 */
export async function openModel(source, { base, offered }, hear, waiting) {
  const silence = new Silence();
  const folder = await silence.orElse(openFolder(), () => null);
  const wanted = await silence.orElse(wantedOf(source, base, folder), () => wantedOf(source, base, null));
  if (!folder) return openUnkept(wanted, base, notKept.impossible(), hear);
  if (wanted.tokenizer) return openUnkept(wanted, base, notKept.twoFiles(), hear);
  const key = wanted.id ?? (await hexDigest(new TextEncoder().encode(wanted.url ?? fingerprint(wanted.file))));
  const turn = await takeTurn(key, hear, waiting);
  if (!turn) return openUnkept(wanted, base, notKept.busy(), hear);
  const watched = { ...turn, hear: (/** @type {Arrived} */ arrived) => (silence.heard(), turn.hear(arrived)) };
  try {
    const opening = new Shelf(folder, wanted, key, base, offered, watched).open(waiting);
    return await silence.orElse(opening, () => {
      turn.end();
      return openUnkept(wanted, base, notKept.silent(), hear);
    });
  } catch (error) {
    turn.end();
    throw error;
  }
}

/** The browser's file system sometimes never answers (Chromium 156, on a busy machine): then the model does without it. */
class Silence {
  #since = performance.now();

  heard() {
    this.#since = performance.now();
  }

  /**
   * @template T
   * @param {Promise<T>} promise
   * @param {() => T | Promise<T>} otherwise  if nothing has been heard for long; a download that falls silent says so before
   * @returns {Promise<T>}
   */
  async orElse(promise, otherwise) {
    this.heard();
    /** @type {ReturnType<typeof setInterval>} */
    let timer;
    /** @type {Promise<T>} */
    const silent = new Promise((resolve) => {
      timer = setInterval(() => {
        if (performance.now() - this.#since > 2000 * SILENCE) resolve(otherwise());
      }, 1000);
    });
    return Promise.race([promise, silent]).finally(() => clearInterval(timer));
  }
}

/**
 * @param {Source} source
 * @param {string} base
 * @param {FileSystemDirectoryHandle | null} folder
 * @returns {Promise<Wanted>}
 */
async function wantedOf(source, base, folder) {
  const unknown = { id: null, url: null, bytes: 0, file: null, chosen: true };
  switch (source.kind) {
    case "offer": {
      const { name, id, url, bytes, sha256 } = source.part;
      return { name, id, url: new URL(url, base).href, bytes, sha256, file: null, chosen: source.chosen ?? false };
    }
    case "kept": {
      const mark = folder && (await readMark(folder, source.id));
      return mark
        ? { ...unknown, ...mark, id: source.id, chosen: true }
        : { ...unknown, name: "This model", id: source.id };
    }
    case "url": {
      const url = new URL(source.url, base).href;
      const id = folder && (await findByURL(folder, url));
      return id ? wantedOf({ kind: "kept", id }, base, folder) : { ...unknown, name: nameIn(url), url };
    }
    case "file":
      return {
        ...unknown,
        name: source.file.name,
        bytes: source.file.size,
        file: source.file,
        tokenizer: source.tokenizer,
      };
  }
}

/** @param {string} url */
function nameIn(url) {
  const name = new URL(url).pathname.split("/").pop() || "model.gguf";
  try {
    return decodeURIComponent(name);
  } catch {
    return name; // what looks like an escape is none
  }
}

/** @param {File | null} file */
const fingerprint = (file) => `${file?.name} ${file?.size} ${file?.lastModified}`;

/**
 * @param {Wanted} wanted
 * @param {string} base
 * @param {(arrived: Arrived) => void} hear
 * @param {() => Promise<void>} note
 */
function downloadOf({ id, url, bytes, sha256 }, base, hear, note) {
  /** @type {RequestInit} */
  const how =
    new URL(url ?? "", base).origin === new URL(base).origin
      ? { mode: "same-origin" }
      : { mode: "cors", credentials: "omit" };
  return new ModelDownload({ url: url ?? "", bytes, sha256, ...(id && { id }) }, NAME, how, hear, note);
}

/**
 * @param {Wanted} wanted
 * @param {string} base
 * @param {string} why  it is not kept
 * @param {(arrived: Arrived) => void} hear
 * @returns {Promise<Opened>}
 */
async function openUnkept(wanted, base, why, hear) {
  if (wanted.file) return unkept(wanted, new LocalFile(wanted.file), null, why);
  if (!wanted.url) throw noLongerKept(wanted.name);
  const blocks = new Blocks();
  const download = downloadOf(wanted, base, hear, async () => {});
  await download.into(blocks);
  return unkept(wanted, blocks, download.id, why);
}

/**
 * @param {Wanted} wanted
 * @param {Bytes} file
 * @param {string | null} id
 * @param {string} why
 * @returns {Opened}
 */
function unkept({ name, tokenizer }, file, id, why) {
  const nothing = async () => {};
  return {
    file,
    tokenizer: tokenizer ? new LocalFile(tokenizer) : null,
    id: id ?? `${name}, ${file.size} bytes`,
    name: withoutSuffix(name),
    kept: false,
    why,
    loaded: nothing,
    refused: nothing,
  };
}

/** @param {string} name */
const withoutSuffix = (name) => name.replace(/\.(gguf|bin)$/, "");

// ---- One tab at a time -----------------------------------------------------------------------------------------------

/** @typedef {{ hear: (arrived: Arrived) => void, end: () => void }} Turn */

/**
 * Waits until no other tab is loading this model, and hears meanwhile how far that is.
 * @param {string} key
 * @param {(arrived: Arrived) => void} hear
 * @param {() => void} waiting
 * @returns {Promise<Turn | null>} null if the other tab has fallen silent
 */
async function takeTurn(key, hear, waiting) {
  const channel = new BroadcastChannel(`fabella-models/${key}`);
  let release = await tryLock(key);
  if (!release) {
    waiting();
    release = await waitForTurn(key, channel, hear);
  }
  if (!release) {
    channel.close();
    return null;
  }
  /** @type {Arrived} */
  let latest = { loaded: 0, total: 0, resumed_from: 0 };
  const beat = setInterval(() => channel.postMessage(latest), BEAT);
  return {
    hear(arrived) {
      latest = arrived;
      hear(arrived);
    },
    end() {
      clearInterval(beat);
      channel.close();
      release();
    },
  };
}

/**
 * @param {string} key
 * @param {BroadcastChannel} channel
 * @param {(arrived: Arrived) => void} hear
 * @returns {Promise<(() => void) | null>}
 */
async function waitForTurn(key, channel, hear) {
  const silence = new AbortController();
  const listen = () => setTimeout(() => silence.abort(), 1000 * SILENCE);
  let timer = listen();
  let before = -1; // bytes that had come when this tab began to listen
  channel.onmessage = ({ data: { loaded, total } }) => {
    clearTimeout(timer);
    timer = listen();
    if (before < 0) before = loaded;
    hear({ loaded, total, resumed_from: Math.min(before, loaded) });
  };
  try {
    return await lock(key, silence.signal);
  } catch (error) {
    if (silence.signal.aborted) return null;
    throw error;
  } finally {
    clearTimeout(timer);
    channel.onmessage = null;
  }
}

// ---- Kept ------------------------------------------------------------------------------------------------------------

/** A model that is, or will be, in the folder. Its turn has come. */
class Shelf {
  /** What is given back when the file is no longer needed. @type {(() => void)[]} */
  #releases;

  /**
   * @param {FileSystemDirectoryHandle} folder
   * @param {Wanted} wanted
   * @param {string} key
   * @param {string} base
   * @param {string[]} offered
   * @param {Turn} turn
   */
  constructor(folder, wanted, key, base, offered, turn) {
    this.folder = folder;
    this.wanted = wanted;
    this.key = key;
    this.base = base;
    this.offered = offered;
    this.turn = turn;
    const { origin, pathname } = new URL(base);
    this.page = origin + pathname;
    this.#releases = [turn.end];
  }

  /**
   * @param {() => void} waiting
   * @returns {Promise<Opened>}
   */
  async open(waiting) {
    const { id, url, file, bytes } = this.wanted;
    try {
      const kept = id && (await this.#openKept(id, waiting));
      if (kept) return kept;
      waiting();
      if (!url && !file) throw noLongerKept(this.wanted.name);
      if (!(await this.#hasRoom())) return await this.#openUnkept(notKept.noRoom(bytes));
      return file ? await this.#copy(file) : await this.#download();
    } catch (error) {
      if (error instanceof DOMException) return this.#openUnkept(whyNot(error, bytes));
      throw error;
    }
  }

  /**
   * A file that is whole: each of its blocks is what it was when it was kept, or else it is removed.
   * @param {string} id
   * @param {() => void} waiting
   * @returns {Promise<Opened | null>}
   */
  async #openKept(id, waiting) {
    const file = await KeptFile.open(this.folder, `${id}.gguf`);
    if (!file) return null;
    const { size } = file;
    this.turn.hear({ loaded: size, total: size, resumed_from: size });
    const hashes = await this.#soundHashes(file, id, waiting);
    if (hashes) return this.#opened(file, id, hashes);
    file.close();
    await removeFiles(this.folder, id);
    if (!this.wanted.url) throw damagedHere(this.wanted.name);
    return null;
  }

  /**
   * @param {KeptFile} file
   * @param {string} id
   * @param {() => void} waiting
   * @returns {Promise<string[] | null>} of its blocks, if all are as they should be
   */
  async #soundHashes(file, id, waiting) {
    const { bytes, sha256 } = this.wanted;
    if (sha256) {
      const isSound = file.size === bytes && (await file.soundBlocks(sha256, waiting)) === sha256.length;
      return isSound ? sha256 : null;
    }
    const found = await hashAll(file, async () => {}); // its mark is lost, but its name tells what it is
    return found.id === id ? found.hashes : null;
  }

  async #hasRoom() {
    const { wanted, folder } = this;
    const part = await KeptFile.open(folder, `${this.key}.part`);
    const missing = wanted.bytes - (part?.size ?? 0);
    part?.close();
    const fits = async () => {
      const { quota = Infinity, usage = 0 } = await navigator.storage.estimate();
      return missing <= quota - usage;
    };
    if (await fits()) return true;
    await removeSuperseded(folder, this.page, this.offered);
    return fits();
  }

  /** @param {string} why */
  #openUnkept(why) {
    this.#release();
    return openUnkept(this.wanted, this.base, why, this.turn.hear);
  }

  /** @returns {Promise<Opened>} */
  async #download() {
    const file = await KeptFile.create(this.folder, `${this.key}.part`);
    const download = downloadOf(this.wanted, this.base, this.turn.hear, async () => {
      const { version, hashes: sha256 } = download;
      const { chosen } = this.wanted;
      if (version) await writeNote(this.folder, this.key, { version, sha256, pages: [this.page], chosen });
    });
    try {
      await download.takeUp(file, await readNote(this.folder, this.key));
      await download.into(file);
    } catch (error) {
      if (error instanceof DOMException) return this.#goOnInMemory(download, file, error);
      const { size } = file;
      file.close();
      if (error instanceof Problem && error.wayOut === "again" && size > 0) {
        await download.note();
        throw interrupted(error, size);
      }
      await removePart(this.folder, this.key);
      throw error;
    }
    return this.#finish(file, download.id, download.hashes);
  }

  /**
   * There was no room after all: what has come goes on in memory.
   * @param {ModelDownload} download
   * @param {KeptFile} file
   * @param {DOMException} error
   * @returns {Promise<Opened>}
   */
  async #goOnInMemory(download, file, error) {
    const blocks = new Blocks();
    for (let number = 0; number < download.hashes.length; number++) blocks.append(file.block(number));
    file.close();
    await removePart(this.folder, this.key);
    this.#release();
    download.note = async () => {};
    await download.into(blocks);
    return unkept(this.wanted, blocks, download.id, whyNot(error, blocks.size));
  }

  /**
   * Copies a file of the visitor's.
   * @param {File} original
   * @returns {Promise<Opened>}
   */
  async #copy(original) {
    const name = `${this.key}.part`;
    const file = await KeptFile.create(this.folder, name);
    file.clear();
    try {
      const { id, hashes } = await hashAll(new LocalFile(original), async (block) => {
        file.append(block);
        this.turn.hear({ loaded: file.size, total: original.size, resumed_from: 0 });
      });
      return await this.#finish(file, id, hashes);
    } catch (error) {
      file.close();
      await removePart(this.folder, this.key);
      throw error;
    }
  }

  /**
   * A file of which all is there becomes one that is kept.
   * @param {KeptFile} part
   * @param {string} id
   * @param {string[]} hashes
   * @returns {Promise<Opened>}
   */
  async #finish(part, id, hashes) {
    const { size } = part;
    part.close();
    if (id !== this.key) this.#releases.push(await lock(id));
    // @ts-expect-error: TypeScript's library does not know move()
    await using(await this.folder.getFileHandle(`${this.key}.part`), (file) => file.move(this.folder, `${id}.gguf`));
    await removePart(this.folder, this.key);
    if (this.wanted.id) await this.#mark(id, size, hashes, null);
    const file = await KeptFile.create(this.folder, `${id}.gguf`);
    return this.#opened(file, id, hashes);
  }

  /**
   * @param {KeptFile} file
   * @param {string} id
   * @param {string[]} hashes
   * @returns {Opened}
   */
  #opened(file, id, hashes) {
    const { size } = file;
    return {
      file,
      tokenizer: null,
      id,
      name: withoutSuffix(this.wanted.name),
      kept: true,
      why: null,
      loaded: async (card) => {
        file.close();
        try {
          await this.#mark(id, size, hashes, card);
          if (this.offered.includes(id)) await removeSuperseded(this.folder, this.page, this.offered);
        } catch (error) {
          if (!(error instanceof DOMException)) throw error; // the file is there, and is known by its name
        }
        this.#release();
      },
      refused: async () => {
        file.close();
        if (!this.wanted.id) await removeFiles(this.folder, id); // nobody has promised that it is a model
        this.#release();
      },
    };
  }

  /**
   * Says of a file that it is whole, and what it is.
   * @param {string} id
   * @param {number} bytes
   * @param {string[]} sha256
   * @param {Card | null} card
   */
  async #mark(id, bytes, sha256, card) {
    const before = await readMark(this.folder, id);
    const { wanted, page } = this;
    /** @type {Mark} */
    const mark = {
      name: wanted.name,
      bytes,
      sha256,
      url: wanted.url ?? before?.url ?? null,
      card: card ?? before?.card ?? null,
      pages: [...new Set([...(before?.pages ?? []), page])],
      chosen: wanted.chosen || (before?.chosen ?? false),
      kept_at: before?.kept_at ?? Date.now(),
    };
    if (JSON.stringify(mark) !== JSON.stringify(before)) await writeMark(this.folder, id, mark);
  }

  #release() {
    for (const release of this.#releases.splice(0)) release();
  }
}

/**
 * @param {DOMException} error
 * @param {number} bytes  of the model
 */
const whyNot = (error, bytes) => (error.name === "QuotaExceededError" ? notKept.noRoom(bytes) : notKept.failed(error));

/**
 * Hashes a file and hands its blocks on.
 * @param {Bytes} file
 * @param {(block: Uint8Array<ArrayBuffer>) => Promise<void>} take
 * @returns {Promise<{ id: string, hashes: string[] }>}
 */
async function hashAll(file, take) {
  const whole = sha256.create();
  const hashes = [];
  for (let offset = 0; offset < file.size; offset += BLOCK) {
    const block = new Uint8Array(Math.min(BLOCK, file.size - offset));
    file.copy(offset, block);
    whole.update(block);
    hashes.push(await hexDigest(block));
    await take(block);
  }
  return { id: hex(whole.digest()), hashes };
}
