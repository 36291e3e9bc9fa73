/**
 * Closes the worker's ways out, before the first code of a visitor's runs in it: that code may be one that they were
 * given, and have not understood. What is left computes, and tells the page; it asks no server for anything, reads and
 * writes nothing that is kept on this machine, and starts no other worker, which would have all of this again.
 *
 * The page's policy forbids the rest: to make JavaScript of a text, and to reach any server but the page's own. What the
 * code has changed here ends with the worker; what it sends, the page believes only as far as distrust.js says; and files
 * that the visitor opens go to another worker (app.js: untouched).
 */

/** To servers, to what is kept here, to other pages and workers, to files and fonts. */
const DOORS = `
  fetch fetchLater XMLHttpRequest WebSocket WebSocketStream WebTransport EventSource RTCPeerConnection
  indexedDB caches cookieStore sharedStorage storageBuckets localStorage sessionStorage
  requestFileSystem requestFileSystemSync resolveLocalFileSystemURL resolveLocalFileSystemSyncURL
  webkitRequestFileSystem webkitRequestFileSystemSync webkitResolveLocalFileSystemURL webkitResolveLocalFileSystemSyncURL
  Worker SharedWorker importScripts BroadcastChannel Notification FontFace fonts
`;

/** The same of `navigator`. */
const OF_NAVIGATOR = "storage storageBuckets serviceWorker sendBeacon locks usb serial hid bluetooth connection";

/** @param {WorkerGlobalScope} scope */
export function seal(scope) {
  for (const name of words(DOORS)) remove(scope, name);
  for (const name of words(OF_NAVIGATOR)) remove(scope.navigator, name);
  remove(URL, "createObjectURL"); // an address within the page's origin, for what the code has made
}

/** @param {string} text */
const words = (text) => text.trim().split(/\s+/);

/**
 * Takes a property away, wherever it comes from.
 * @param {any} object
 * @param {string} name
 */
function remove(object, name) {
  for (let owner = object; owner; owner = Object.getPrototypeOf(owner)) Reflect.deleteProperty(owner, name);
  if (name in object) Object.defineProperty(object, name, { value: undefined });
}
