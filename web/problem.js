/**
 * What happened to a part of the page, in words, and the way out: the one place that explains it.
 *
 * A part is called as a sentence begins: "The model file". Each sentence says what is known, and no more.
 */

import { megabytes } from "./words.js";

/** @typedef {"again" | "reload"} WayOut  what may help: to try again, or to reload the page */

/** Seconds without a byte after which a server is taken to have fallen silent. */
export const SILENCE = 15;

/** A failure in words that are meant for the visitor. */
export class Problem extends Error {
  /**
   * @param {string} message
   * @param {WayOut} [wayOut]
   */
  constructor(message, wayOut = "again") {
    super(message);
    this.wayOut = wayOut;
  }
}

/** Seconds without a word after which the visitor's code is taken to hang where nothing can stop it. */
export const HANG = 4;

/** The worker has to be started anew because of the visitor's code; the page does so itself. */
export class Spoilt extends Problem {}

/** @param {number} seconds */
export const hung = (seconds) =>
  new Spoilt(
    `Your code did not come back for ${seconds} seconds, and nothing could stop it: a single step that takes too long, ` +
      "as 9**9**9 does. The storyteller was started anew.",
  );

export const broken = () =>
  new Spoilt("Your code has broken the storyteller, which runs beside it. It was started anew.");

/** @param {string} part */
export const unreachable = (part) =>
  new Problem(`${part} could not be downloaded. Check your connection, then try again.`);

/** @param {string} part */
export const elsewhere = (part) =>
  new Problem(
    `${part} could not be downloaded: the server sends the browser to another address, which this page never follows. ` +
      "You may have to log in to your network first; then try again.",
  );

/** @param {string} part */
export const silent = (part) =>
  new Problem(
    `${part} does not arrive: nothing has come for ${SILENCE} seconds. Check your connection, then try again.`,
  );

/** A download that was cut: whoever can take it up again where it ended may do so. */
export class Interruption extends Problem {}

/** @param {string} part */
export const brokenOff = (part) =>
  new Interruption(`${part} stopped arriving halfway. Check your connection, then try again.`);

/**
 * @param {Problem} problem  that ended a download
 * @param {number} bytes  of it that are kept
 */
export const interrupted = (problem, bytes) =>
  new Problem(`${problem.message} (The ${megabytes(bytes)} that have come are kept: it goes on from there.)`);

/**
 * @param {string} part
 * @param {string} host
 */
export const otherHost = (part, host) =>
  new Problem(
    `${part} could not be downloaded from ${host}: either it cannot be reached, or it does not allow other pages to read ` +
      "its files (CORS), or this page’s policy does not allow that host.",
  );

/**
 * @param {string} part
 * @param {number} status  of the server's answer
 */
export function refused(part, status) {
  const gone = status === 404 || status === 410;
  return gone
    ? new Problem(
        `${part} could not be downloaded: it is not there (${status}). This page may have been renewed meanwhile: ` +
          "reload it.",
        "reload",
      )
    : new Problem(`${part} could not be downloaded: the server answers ${status}. Try again in a moment.`);
}

/** @param {string} part */
export const webPage = (part) =>
  new Problem(
    `In the place of a part the server sends a web page. (The part: ${part}.) Either this page has been renewed ` +
      "meanwhile, or you have to log in to your network first: then reload it.",
    "reload",
  );

/**
 * @param {string} part
 * @param {string} difference  as in "it has 3 bytes, not 5"
 */
const anotherFile = (part, difference) =>
  new Problem(
    `${part} is not the file that this page was built with: ${difference}. The page may have been renewed meanwhile: ` +
      "reload it.",
    "reload",
  );

/**
 * @param {string} asked  by the address
 * @param {string} own  the page's model
 */
export const noSuchModel = (asked, own) =>
  new Problem(`This page has no model that is called “${asked}”. Try again with the one that it has, “${own}”.`);

/**
 * @param {string} part
 * @param {number} expected  bytes
 * @param {number} came
 */
export const anotherLength = (part, expected, came) =>
  anotherFile(part, `${expected} bytes were expected, and ${came > expected ? "more" : `only ${came}`} came`);

/** @param {string} part */
export const otherBytes = (part) => anotherFile(part, "some of its bytes are others");

/** @param {string} name  of a model that was kept on this machine */
export const noLongerKept = (name) =>
  new Problem(
    `${name} is no longer on this machine: the browser has removed it to make room, or you did in another tab. Open it ` +
      "again from where you have it.",
  );

/** @param {string} name  of a model that the visitor had dropped on the page */
export const damagedHere = (name) =>
  new Problem(
    `${name}, as it was kept on this machine, is damaged, and so it was removed. This page cannot download it again: open ` +
      "your file once more.",
  );

/** @param {string} name  of a file of the visitor's */
export const unreadable = (name) =>
  new Problem(`${name} cannot be read: it was moved, changed or deleted since you opened it. Open it once more.`);

/** Why a model is not kept on this machine, each in a sentence. */
export const notKept = {
  impossible: () =>
    "The model is not kept on this machine, because this browser has no room for a page’s files here (a private window, an " +
    "address without https, or an older browser).",
  /** @param {number} bytes  needed */
  noRoom: (bytes) =>
    `The model is not kept on this machine: its ${megabytes(bytes)} are more than the browser has room for here.`,
  twoFiles: () =>
    "The model is not kept on this machine, because it is two files; “python build.py --model” makes one of them.",
  silent: () => "The model is not kept on this machine: the browser’s file system does not answer.",
  busy: () => "The model is not kept on this machine: another tab is busy with it and does not answer.",
  /** @param {DOMException} error */
  failed: (error) => `The model is not kept on this machine: the browser could not write it (${error.name}).`,
};

/**
 * @param {string} part
 * @param {unknown} error  what the browser says; undefined if it says nothing
 */
export function notStarted(part, error) {
  const reason = error instanceof Error ? error.message : error;
  const said = reason ? ` (${reason})` : "";
  return new Problem(`${part} did not start. Try again; if that does not help, try a newer browser.${said}`);
}

/** What a policy has forbidden of the things that this page needs: a directive. */
let forbidden = "";

globalThis.addEventListener?.("securitypolicyviolation", (event) => {
  const { blockedURI, disposition, effectiveDirective } = /** @type {SecurityPolicyViolationEvent} */ (event);
  const needed = /^(blob|wasm-eval|trusted-types)/.test(blockedURI) || blockedURI.startsWith(globalThis.origin);
  if (needed && disposition === "enforce") forbidden ||= effectiveDirective;
});

/**
 * What is behind a failure: a policy, of which the browser tells a moment later, or what it seemed to be. The page's own
 * policy allows all that it needs.
 * @template T
 * @param {T} error
 */
export async function causeOf(error) {
  await new Promise((resolve) => setTimeout(resolve));
  if (!forbidden) return error;
  return new Problem(
    `This page’s server sends a Content-Security-Policy that forbids what the page needs (${forbidden}). Whoever runs the ` +
      "server can leave that header out: the page has a strict policy of its own.",
    "reload",
  );
}

/** The smallest module that needs SIMD: a function that returns i32x4.splat(0). */
// prettier-ignore
const SIMD = Uint8Array.of(
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
  1, 5, 1, 0x60, 0, 1, 0x7b, // a function that returns a v128
  3, 2, 1, 0,
  10, 8, 1, 6, 0, 0x41, 0, 0xfd, 17, 0x0b,
);

/** What makes it impossible that the page works here, or null. */
export function impossible() {
  if (globalThis.location?.protocol === "file:") {
    return new Problem(
      "This page was opened from a file, and browsers load the parts of a page from web servers only. Put its folder on " +
        "any web server, or run “python build.py serve”.",
    );
  }
  if (globalThis.origin === "null") {
    return new Problem(
      "This page is in a sandbox, which keeps it from loading its parts. Open it in a tab of its own; if it is in one, its " +
        "server has to leave out “sandbox” in the headers.",
      "reload",
    );
  }
  if (typeof WebAssembly !== "object") {
    return new Problem(
      "WebAssembly is switched off in this browser, and the storyteller is made of it. (iOS’s Lockdown Mode does that, and " +
        "some browsers’ strictest security level.) Allow it for this page, or use another browser.",
      "reload",
    );
  }
  if (!WebAssembly.validate(SIMD)) {
    return new Problem(
      "This browser’s WebAssembly has no SIMD, which the storyteller needs. Use a newer browser.",
      "reload",
    );
  }
  return null;
}
