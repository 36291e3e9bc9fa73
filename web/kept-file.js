/** Model files that are read where they lie: in the browser's file system, or on the visitor's disk. For workers only. */

import { BLOCK, Bytes, hexDigest } from "./bytes.js";
import { unreadable } from "./problem.js";
import { isNotFound, using } from "./store.js";

/**
 * Blocks that are hashed at once. The browser hashes beside this thread, which is busy with Python's start meanwhile and
 * would come back for the next ones only now and then. The engine's memory, a little later, is as large as they are.
 */
const AT_ONCE = 128;

/** How often, and how many milliseconds apart, a file is tried that a tab which was just closed still has. */
const TRIES = 40;
const PAUSE = 50;

/**
 * @param {FileSystemDirectoryHandle} folder
 * @param {string} name
 * @param {FileSystemGetFileOptions} [options]
 */
async function access(folder, name, options) {
  const file = await folder.getFileHandle(name, options);
  for (let left = TRIES; ; left--) {
    try {
      return new KeptFile(await using(file, () => file.createSyncAccessHandle()));
    } catch (error) {
      if (!(error instanceof DOMException && error.name === "NoModificationAllowedError") || left === 0) throw error;
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }
}

/** A file in OPFS, which nobody else can open meanwhile. */
export class KeptFile extends Bytes {
  #handle;
  /** Where bytes go first that the browser does not read into memory which threads share. @type {Uint8Array | null} */
  #scratch = null;

  /** @param {FileSystemSyncAccessHandle} handle */
  constructor(handle) {
    super();
    this.#handle = handle;
    this.size = handle.getSize();
  }

  /**
   * @param {FileSystemDirectoryHandle} folder
   * @param {string} name
   * @returns {Promise<KeptFile | null>} null if there is no such file
   */
  static async open(folder, name) {
    try {
      return await access(folder, name);
    } catch (error) {
      if (isNotFound(error)) return null;
      throw error;
    }
  }

  /**
   * @param {FileSystemDirectoryHandle} folder
   * @param {string} name  of a file that may be there
   */
  static create(folder, name) {
    return access(folder, name, { create: true });
  }

  /** @param {Uint8Array<ArrayBuffer>} block */
  append(block) {
    const written = this.#handle.write(block, { at: this.size });
    if (written !== block.length) throw new DOMException("the disk is full", "QuotaExceededError");
    this.size += written;
  }

  clear() {
    this.truncate(0);
  }

  /** @param {number} size  bytes that stay */
  truncate(size) {
    this.#handle.truncate(size);
    this.size = size;
  }

  /**
   * @param {number} offset
   * @param {Uint8Array} target
   */
  copy(offset, target) {
    const { buffer, byteOffset, length } = target;
    if (this.#scratch === null) {
      try {
        this.#read(offset, target);
        return;
      } catch (error) {
        if (!(error instanceof TypeError) || buffer instanceof ArrayBuffer) throw error;
        this.#scratch = new Uint8Array(BLOCK);
      }
    }
    for (let done = 0, part; done < length; done += part.length) {
      part = this.#scratch.subarray(0, Math.min(BLOCK, length - done));
      this.#read(offset + done, part);
      new Uint8Array(buffer, byteOffset + done, part.length).set(part);
    }
  }

  /**
   * @param {number} offset
   * @param {Uint8Array} target
   */
  #read(offset, target) {
    const read = this.#handle.read(target, { at: offset });
    if (read !== target.length) throw new RangeError(`${read} of ${target.length} bytes at ${offset} of ${this.size}`);
  }

  /**
   * A copy of one of its blocks.
   * @param {number} number
   */
  block(number) {
    const block = new Uint8Array(Math.min(BLOCK, this.size - number * BLOCK));
    this.copy(number * BLOCK, block);
    return block;
  }

  /** How many blocks it has; the last one may be short. */
  get blocks() {
    return Math.ceil(this.size / BLOCK);
  }

  /**
   * Compares its blocks with their hashes, from the front.
   * @param {string[]} expected  perhaps not of all
   * @param {() => void} [waiting]  called when this thread has read what is hashed now
   * @returns {Promise<number>} how many are as they should be, up to the first that is not
   */
  async soundBlocks(expected, waiting = () => {}) {
    const count = Math.min(this.blocks, expected.length);
    const place = new Uint8Array(BLOCK); // the browser hashes a copy of what it is given
    for (let begin = 0; begin < count; begin += AT_ONCE) {
      const hashes = [];
      for (let number = begin; number < Math.min(begin + AT_ONCE, count); number++) {
        const block = place.subarray(0, this.size - number * BLOCK);
        this.copy(number * BLOCK, block);
        hashes.push(hexDigest(block));
      }
      waiting();
      const wrong = (await Promise.all(hashes)).findIndex((hash, index) => hash !== expected[begin + index]);
      if (wrong >= 0) return begin + wrong;
    }
    return count;
  }

  close() {
    this.#handle.close();
  }
}

/** A file that the visitor has given the page: only what is asked for is read of it. */
export class LocalFile extends Bytes {
  #file;
  #reader = new FileReaderSync();

  /** @param {File} file */
  constructor(file) {
    super();
    this.#file = file;
    this.size = file.size;
  }

  /**
   * @param {number} offset
   * @param {Uint8Array} target
   */
  copy(offset, target) {
    try {
      target.set(new Uint8Array(this.#reader.readAsArrayBuffer(this.#file.slice(offset, offset + target.length))));
    } catch {
      throw unreadable(this.#file.name);
    }
  }
}
