/**
 * Takes the place of the service worker where the page is built to do without one, and is dist/sw.js then. As any newer
 * worker it waits until the last page of the older version is closed; then it deletes what that has kept, and itself.
 */

import { deleteOthers } from "./caches.js";

const scope = /** @type {ServiceWorkerGlobalScope} */ (/** @type {unknown} */ (globalThis));

scope.addEventListener("activate", (event) => {
  event.waitUntil(Promise.all([deleteOthers(null), scope.registration.unregister()]));
});
