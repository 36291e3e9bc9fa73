/**
 * A model's way from its host into a file here, block by block: each is compared as soon as it is there, and what is
 * interrupted goes on behind the last good one.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { BLOCK, hex, hexDigest, isWebPage } from "./bytes.js";
import { Arrival } from "./download.js";
import { Interruption, anotherLength, brokenOff, otherBytes, refused, webPage } from "./problem.js";

/** @import { Part } from "./messages.js" */

/**
 * @typedef {object} Sink  where blocks go
 * @property {number} size  bytes that are there: whole blocks, or all of the file
 * @property {(block: Uint8Array<ArrayBuffer>) => void} append
 * @property {() => void} clear
 *
 * @typedef {object} Version  by what a host's file is known again
 * @property {string | null} etag
 * @property {string | null} modified
 * @property {number | null} bytes
 *
 * @typedef {{ loaded: number, total: number, resumed_from: number }} Arrived  bytes; total is 0 if it is not known
 */

/** Blocks that are hashed while the next ones arrive. */
const AHEAD = 16;

/** After so many blocks what is known of a part is noted anew. */
const NOTED = 8;

/** A download, over all its interruptions. */
export class ModelDownload {
  /** @type {Version | null} */
  version = null;
  /** The SHA-256 of each block that has come, in hexadecimal digits. @type {string[]} */
  hashes = [];
  #whole = sha256.create();
  #resumedFrom = 0;

  /**
   * @param {Part & { id?: string }} part  its URL is absolute; without an id, that is found out
   * @param {string} name  as a sentence begins
   * @param {RequestInit} how  it is asked for
   * @param {(arrived: Arrived) => void} hear
   * @param {() => Promise<void>} note  called when there is more to be known of it
   */
  constructor(part, name, how, hear, note) {
    this.part = part;
    this.name = name;
    this.how = how;
    this.hear = hear;
    this.note = note;
  }

  /** The SHA-256 of the whole file, once all of it has come. */
  get id() {
    return this.part.id ?? hex(this.#whole.digest());
  }

  /**
   * Takes a file up that was begun before, as far as it is what it should be.
   * @param {import("./kept-file.js").KeptFile} file
   * @param {{ version: Version, sha256: string[] } | null} noted
   */
  async takeUp(file, noted) {
    const known = this.part.sha256 ?? noted?.sha256 ?? [];
    const sound = await file.soundBlocks(known);
    const isWhole = sound === this.part.sha256?.length && file.size === this.part.bytes;
    const whole = isWhole ? file.size : Math.min(sound, Math.floor(file.size / BLOCK)) * BLOCK;
    file.truncate(whole);
    this.version = noted?.version ?? null;
    this.hashes = known.slice(0, file.blocks);
    if (!this.part.id) for (let number = 0; number < file.blocks; number++) this.#whole.update(file.block(number));
    this.#resumedFrom = whole;
  }

  /**
   * Downloads what is missing. A connection that is cut is taken up again as long as that brings the end nearer.
   * @param {Sink} sink
   */
  async into(sink) {
    for (let best = -1; ;) {
      try {
        await this.#attempt(sink);
        return;
      } catch (error) {
        if (!(error instanceof Interruption) || sink.size <= best) throw error;
        best = sink.size;
      }
    }
  }

  /** @param {Sink} sink */
  async #attempt(sink) {
    const { bytes, sha256: expected } = this.part;
    this.#tell(sink.size);
    if (expected && sink.size === bytes) return;
    const arrival = new Arrival(this.part, this.name);
    const response = await this.#open(arrival, sink);
    let received = sink.size;
    let block = new Uint8Array(BLOCK);
    let filled = 0;
    let taken = Promise.resolve(); // all blocks so far
    let waiting = 0; // blocks
    const finish = () => {
      const data = block.subarray(0, filled);
      if (received <= BLOCK && isWebPage(data)) throw webPage(this.name);
      if (expected && filled < BLOCK && received < bytes) throw anotherLength(this.name, bytes, received);
      const hash = hexDigest(data);
      waiting++;
      taken = taken.then(async () => {
        await this.#take(sink, data, await hash);
        waiting--;
      });
      taken.catch(() => {}); // it is waited for below
      block = new Uint8Array(BLOCK);
      filled = 0;
    };

    try {
      for await (const chunk of arrival.chunks(response)) {
        for (let done = 0, count; done < chunk.length; done += count) {
          count = Math.min(chunk.length - done, BLOCK - filled);
          block.set(chunk.subarray(done, done + count), filled);
          filled += count;
          received += count;
          if (expected && received > bytes) throw anotherLength(this.name, bytes, received);
          if (filled === BLOCK) finish();
        }
        this.#tell(received);
        if (waiting > AHEAD) await taken;
      }
      if (!expected && received < (this.version?.bytes ?? 0)) throw brokenOff(this.name);
      if (filled > 0 || received < bytes || received === 0) finish(); // the last block
    } catch (error) {
      await taken;
      const isPromisedMore = error instanceof Interruption && expected && received === bytes;
      if (!isPromisedMore) throw error;
      if (filled > 0) finish();
    }
    await taken;
  }

  /**
   * Asks for what the sink does not have; if that is not to be had of the same file, empties it and asks for all.
   * @param {Arrival} arrival
   * @param {Sink} sink
   * @returns {Promise<Response>} whose body follows what is in the sink
   */
  async #open(arrival, sink) {
    let response;
    if (sink.size > 0) {
      const headers = { Range: `bytes=${sink.size}-`, ...this.#condition() };
      response = await arrival.open({ ...this.how, headers });
      if (this.#goesOn(response, sink.size)) return response;
      sink.clear();
      this.hashes = [];
      this.#whole = sha256.create();
      this.#resumedFrom = 0;
    }
    if (response?.status !== 200) {
      response?.body?.cancel();
      response = await arrival.open(this.how);
    }
    if (response.status !== 200) throw refused(this.name, response.status); // a range that nobody asked for
    this.version = versionOf(response, Number(response.headers.get("Content-Length")) || null);
    return response;
  }

  /**
   * A host that has another file meanwhile sends all of that; other origins would have to be asked beforehand whether
   * they mind the question.
   */
  #condition() {
    const { etag, modified } = this.version ?? {};
    const known = etag?.startsWith('"') ? etag : modified;
    return known && this.how.mode === "same-origin" ? { "If-Range": known } : null;
  }

  /**
   * Whether a response goes on where this download is, in the same file.
   * @param {Response} response
   * @param {number} from
   */
  #goesOn(response, from) {
    const range = /^bytes (\d+)-\d+\/(\d+)$/.exec(response.headers.get("Content-Range") ?? "");
    if (response.status !== 206 || !range || Number(range[1]) !== from) return false;
    const { bytes, sha256: expected } = this.part;
    const now = versionOf(response, Number(range[2]));
    if (expected && now.bytes !== bytes) return false;
    const before = this.version ?? now;
    this.version = { ...before, bytes: before.bytes ?? now.bytes };
    return ["etag", "modified", "bytes"].every((key) => {
      const [a, b] = [before, now].map((version) => version[/** @type {keyof Version} */ (key)]);
      return a === null || b === null || a === b;
    });
  }

  /**
   * @param {Sink} sink
   * @param {Uint8Array<ArrayBuffer>} block
   * @param {string} hash
   */
  async #take(sink, block, hash) {
    const { id, sha256: expected } = this.part;
    if (expected && hash !== expected[this.hashes.length]) throw otherBytes(this.name);
    const whole = id ? this.#whole : this.#whole.clone().update(block);
    sink.append(block); // which may fail: then the block has not come
    this.#whole = whole;
    this.hashes.push(hash);
    if (this.hashes.length % NOTED === 1) await this.note();
  }

  /** @param {number} loaded */
  #tell(loaded) {
    const total = this.part.sha256 ? this.part.bytes : (this.version?.bytes ?? 0);
    this.hear({ loaded, total, resumed_from: this.#resumedFrom });
  }
}

/**
 * @param {Response} response
 * @param {number | null} bytes  that it says the file has; what is sent packed does not say that
 * @returns {Version}
 */
function versionOf({ headers }, bytes) {
  const etag = headers.get("ETag")?.replace(/^W\//, "") ?? null;
  return { etag, modified: headers.get("Last-Modified"), bytes: headers.has("Content-Encoding") ? null : bytes };
}
