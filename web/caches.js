/**
 * The names of the caches in which a service worker keeps the page's files. All pages of an origin share one storage, so
 * they carry the page's address, and a space, which no address has.
 */

const scope = /** @type {ServiceWorkerGlobalScope} */ (/** @type {unknown} */ (globalThis));

/** @param {string} version  of the page */
export const cacheName = (version) => `fabella ${scope.registration.scope} ${version}`;

/**
 * Deletes the files of this page's other versions.
 * @param {string | null} version  that stays; null: none
 */
export async function deleteOthers(version) {
  const ours = (await caches.keys()).filter((name) => name.startsWith(cacheName("")));
  await Promise.all(
    ours.filter((name) => version === null || name !== cacheName(version)).map((name) => caches.delete(name)),
  );
}
