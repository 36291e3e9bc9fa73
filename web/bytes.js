/** A file's bytes, wherever they are: what the loaders ask of them, and how they are compared. */

import { sha256 } from "@noble/hashes/sha2.js";

/**
 * Bytes of a block, as in build.py, which hashes each: many times what arrives at once. Browsers return the
 * memory of large arrays at once, and keep that of small ones.
 */
export const BLOCK = 1 << 20;

/**
 * What Python's loader asks of a model file (py/fabella/hosts.py), which lies in this worker's memory, in the browser's
 * file system or on the visitor's disk.
 */
export class Bytes {
  /** Bytes of the whole file. */
  size = 0;

  /**
   * Fills an array with the file's bytes from `offset` on.
   * @param {number} offset
   * @param {Uint8Array} target
   */
  copy(offset, target) {
    throw new Error(`no ${target.length} bytes at ${offset}`);
  }

  /**
   * Fills an array as copy() does; whoever takes bytes will not ask for any before their end again.
   * @param {number} offset
   * @param {Uint8Array} target
   */
  take(offset, target) {
    this.copy(offset, target);
  }

  /**
   * Many texts that lie one behind the other, each behind its length (8 bytes): walking through them here takes a
   * quarter of the time that it would take Python.
   * @param {number} offset  of the first one's length
   * @param {number} count
   * @returns {{ bytes: Uint8Array, end: number } | null} all texts with a zero byte between them, and the offset behind the
   *     last; null if the file ends before
   */
  texts(offset, count) {
    for (let guess = 24 * count; guess < 1 << 28; guess *= 4) {
      const window = Math.min(guess, this.size - offset);
      const file = new Uint8Array(window);
      this.copy(offset, file);
      const bytes = new Uint8Array(window);
      const end = joinTexts(file, count, bytes);
      if (end) return { bytes: bytes.subarray(0, end - 7 * count - 1), end: offset + end };
      if (window === this.size - offset) break;
    }
    return null;
  }
}

/**
 * @param {Uint8Array} file  of which the texts are the beginning
 * @param {number} count  of texts
 * @param {Uint8Array} target  where they go, a zero byte between them
 * @returns {number} how many bytes of the file they are; 0 if it ends before
 */
function joinTexts(file, count, target) {
  const lengths = new DataView(file.buffer);
  let at = 0;
  for (let number = 0, to = 0; number < count; number++) {
    if (at + 8 > file.length) return 0;
    const length = lengths.getUint32(at, true);
    const begin = at + 8;
    at = begin + length;
    if (at > file.length || lengths.getUint32(begin - 4, true) !== 0) return 0;
    // Most are so short that a call for each would take longer.
    if (length > 32) target.set(file.subarray(begin, at), to);
    else for (let i = 0; i < length; i++) target[to + i] = file[begin + i];
    to += length + 1;
  }
  return at;
}

/**
 * Whether a file begins as HTML does.
 * @param {Uint8Array} beginning
 */
export function isWebPage(beginning) {
  return /^\s*<(!doctype|html|head|body|\?xml)/i.test(new TextDecoder().decode(beginning.subarray(0, 100)));
}

/**
 * The browser's own SHA-256 works beside this thread, and many times as fast, but only for pages that came by https or
 * from this machine.
 * @param {Uint8Array<ArrayBuffer>} data
 */
export async function hexDigest(data) {
  const bytes = globalThis.crypto.subtle ? new Uint8Array(await crypto.subtle.digest("SHA-256", data)) : sha256(data);
  return hex(bytes);
}

/** @param {Uint8Array} bytes */
export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
