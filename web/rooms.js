/**
 * Rooms: parts of the page that are not there before somebody wants them. Each is a script of its own, which the browser
 * compares with its hash. It cannot import the page's modules, which would be others of the same name, so it is handed
 * what it needs of them.
 */

import { download } from "./download.js";
import { notStarted } from "./problem.js";
import { change, current, watch } from "./state.js";

/** @import { Assets, Part, Room } from "./messages.js" */

/** The page's state, and what may be done in it: what a room is handed. */
export const house = { change, current, watch };

/** @typedef {typeof house & typeof import("./telling.js")} House  as app.js makes it */

const NAME = "This part of the page";

/** @type {Map<Room, Promise<any>>} */
const open = new Map();

/**
 * Opens a room, once.
 * @param {Room} name
 * @param {Assets} assets
 * @param {object} actions
 * @returns {Promise<any>} what its function `mount` returns
 */
export function enter(name, assets, actions) {
  const entering = open.get(name) ?? run(name, assets.rooms[name]).then((room) => room.mount({ ...house, ...actions }));
  open.set(name, entering);
  entering.catch(() => open.delete(name)); // the next try may succeed
  return entering;
}

/**
 * Runs a room's script: a classic one, which browsers run whatever type a server gives it.
 * @param {Room} name
 * @param {Part} part
 * @returns {Promise<any>} what it exports
 */
async function run(name, part) {
  const script = document.createElement("script");
  script.src = part.url;
  script.integrity = `sha256-${btoa(String.fromCharCode(...bytesOf(part.sha256?.[0] ?? "")))}`;
  const run = new Promise((resolve, reject) => {
    script.onload = resolve;
    script.onerror = reject;
  });
  document.head.append(script);
  try {
    await run;
  } catch {
    await download({ ...part, url: new URL(part.url, document.baseURI).href }, NAME, () => {}); // it says what is wrong
    throw notStarted(NAME, undefined);
  } finally {
    script.remove();
  }
  return /** @type {any} */ (globalThis)[`fabella_${name}`];
}

/** @param {string} hex */
const bytesOf = (hex) => (hex.match(/../g) ?? []).map((digits) => parseInt(digits, 16));
