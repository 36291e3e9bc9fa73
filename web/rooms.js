/**
 * Rooms: parts of the page that are not there before somebody wants them. Each is a script of its own, downloaded and
 * compared like all parts. It cannot import the page's modules, which would be others of the same name, so it is handed
 * what it needs of them.
 */

import { downloadScript } from "./download.js";
import { change, current, watch } from "./state.js";

/** @import { Assets, Room } from "./messages.js" */

/** The page's state, and what may be done in it: what a room is handed. */
export const house = { change, current, watch };

/** @typedef {typeof house & typeof import("./telling.js")} House */

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
  const part = assets.rooms[name];
  const entering =
    open.get(name) ??
    downloadScript({ ...part, url: new URL(part.url, document.baseURI).href }, "This part of the page").then((room) =>
      room.mount({ ...house, ...actions }),
    );
  open.set(name, entering);
  entering.catch(() => open.delete(name)); // the next try may succeed
  return entering;
}
