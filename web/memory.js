/** Small things that the browser remembers for this page: the visitor's tastes, and what stood in this tab. */

/**
 * @param {string} key
 * @param {Storage} [storage]
 * @returns {string} "" if there is none, or the browser remembers nothing
 */
export function recall(key, storage = storageOf("localStorage")) {
  return storage?.getItem(`fabella ${key}`) ?? "";
}

/**
 * @param {string} key
 * @param {string} value  "" forgets it
 * @param {Storage} [storage]
 */
export function remember(key, value, storage = storageOf("localStorage")) {
  try {
    if (value) storage?.setItem(`fabella ${key}`, value);
    else storage?.removeItem(`fabella ${key}`);
  } catch {
    storage?.removeItem(`fabella ${key}`); // there is no room, and what was there is out of date
  }
}

/** This tab's, which a reload leaves as it is; another page of this host has the same. */
export const tab = () => storageOf("sessionStorage");

/** What this page calls its own where others of its host are, too. @param {string} key */
export const ownKey = (key) => `${location.pathname} ${key}`;

/** @param {"localStorage" | "sessionStorage"} name @returns {Storage | undefined} */
function storageOf(name) {
  try {
    return globalThis[name];
  } catch {
    return undefined; // a browser that lets the page keep nothing
  }
}
