/**
 * The page without a network: keeps the files of one version of the page and answers with them. It is dist/sw.js, at the
 * beginning of which build.py writes that version.
 *
 * Names in folders carry a hash of their file, or the version of Pyodide: such a file never changes, and the one that is
 * kept is as good as any. The others, index.html above all, come from the network as long as there is one. So a newer
 * page names newer files, which an older worker does not know and leaves to the network; and because no worker takes the
 * place of another before the last page of its version is closed, that page finds its own files to the end. Nowhere do
 * two versions meet.
 */

import { hex } from "./bytes.js";
import { cacheName, deleteOthers } from "./caches.js";

/**
 * @typedef {object} Version
 * @property {string} version  changes with every file; index.html holds it, too
 * @property {Record<string, string>} files  by URL, relative to the page: the SHA-256 in hexadecimal digits
 * @property {Record<string, string>} models  in the same way; store.js keeps them where there is a place for files
 */

const scope = /** @type {ServiceWorkerGlobalScope} */ (/** @type {unknown} */ (globalThis));
const { version, files, models } = /** @type {{ page: Version }} */ (/** @type {unknown} */ (globalThis)).page;
/** All that a request may be answered with. */
const known = { ...files, ...models };
const CACHE = cacheName(version);
const INDEX = "index.html";

/** Milliseconds after which the network is taken for dead where there is a file to show instead. */
const PATIENCE = 4000;

/** With these, browsers give a page threads; a host's own are left as they are. Isolated pages may embed this one. */
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "cross-origin",
};

scope.addEventListener("install", (event) => event.waitUntil(keepAll()));

scope.addEventListener("activate", (event) => event.waitUntil(begin()));

scope.addEventListener("fetch", (event) => {
  const { request } = event;
  const name = nameOf(request);
  if (request.method !== "GET" || request.headers.has("Range") || !Object.hasOwn(known, name)) return; // the browser's own business
  if (name.includes("/")) event.respondWith(kept(name).then((response) => response ?? fetch(request)));
  else event.respondWith(newest(request, name));
});

// The page has found a file damaged.
scope.addEventListener("message", (event) => {
  const mended = discardDamaged();
  event.waitUntil(mended.then(keepAll));
  mended.finally(() => event.ports[0].postMessage(null));
});

async function begin() {
  await deleteOthers(version);
  await scope.clients.claim(); // the first page keeps its files from now on, as all that follow
}

// ---- Answering -------------------------------------------------------------------------------------------------------

/**
 * The name of a file within the page, whatever is asked of a page's address.
 * @param {Request} request
 */
function nameOf({ url, mode }) {
  const name = url.replace(/#.*/s, "").replace(mode === "navigate" ? /\?.*/s : "", "");
  return name.startsWith(scope.registration.scope) ? name.slice(scope.registration.scope.length) || INDEX : "";
}

/** @param {string} name */
const urlOf = (name) => scope.registration.scope + (name === INDEX ? "" : name);

/** @param {string} name */
const kept = (name) => caches.match(urlOf(name), { cacheName: CACHE, ignoreVary: true });

/**
 * What the network says, or, if that is nothing or a server's own trouble, what is kept. The browser does not ask the
 * network while this worker starts (navigation preload): where it has none, Firefox shows an error, whatever comes from here.
 * @param {Request} request
 * @param {string} name
 */
async function newest(request, name) {
  const network = fetch(request);
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE));
  const response = /** @type {Response | undefined} */ (await Promise.race([network.catch(() => {}), late]));
  if (response && response.status < 500) return isolated(response);
  return isolated((await kept(name)) ?? (await network));
}

/** @param {Response} response */
function isolated(response) {
  if (response.type === "opaqueredirect") return response; // the browser goes where it says
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATION)) if (!headers.has(name)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

// ---- Keeping ---------------------------------------------------------------------------------------------------------

/** Whether models can be kept elsewhere: WebKitGTK 2.50 and private windows have no place for files. */
async function hasFolder() {
  try {
    return Boolean(await navigator.storage.getDirectory());
  } catch {
    return false;
  }
}

/** Keeps each file that is not kept yet, one after the other: the page is there, and may have better to do. */
async function keepAll() {
  const cache = await caches.open(CACHE);
  const wanted = (await hasFolder()) ? files : known;
  for (const name of Object.keys(wanted)) if (!(await kept(name))) await cache.put(urlOf(name), await download(name));
}

/**
 * @param {string} name
 * @returns {Promise<Response>} the file that this version was built with
 */
async function download(name) {
  // What the browser has from before may be another version's, or damaged: then the network is asked itself.
  for (const cache of /** @type {const} */ (["default", "reload"])) {
    const response = await fetch(urlOf(name), { cache, mode: "same-origin" });
    if (response.ok && (await isIntact(name, response.clone()))) return response;
  }
  throw new Error(`${urlOf(name)} is not the file that version ${version} of this page was built with`);
}

/**
 * Whether a file is what this version was built with, and all of it there. Hosts may add lines to index.html: it needs
 * only to be of this version.
 * @param {string} name
 * @param {Response} response
 */
async function isIntact(name, response) {
  try {
    if (name === INDEX) return (await response.text()).includes(version);
    const hash = await crypto.subtle.digest("SHA-256", await response.arrayBuffer());
    return hex(new Uint8Array(hash)) === known[name];
  } catch {
    return false; // it broke off
  }
}

async function discardDamaged() {
  const cache = await caches.open(CACHE);
  for (const name of Object.keys(known)) {
    const response = await kept(name);
    if (response && !(await isIntact(name, response))) await cache.delete(urlOf(name), { ignoreVary: true });
  }
}
