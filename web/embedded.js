/**
 * The page within somebody else's (fabella.js): the leaf alone, as high as what is on it, of which the other page is told.
 */

import { read } from "./address.js";

export function mountEmbedded() {
  if (window === window.top || !read(location.hash).compact) return;
  const page = document.documentElement;
  page.dataset.view = "leaf"; // for style.css
  // Whoever shows this page may know how high it is.
  const tell = () => parent.postMessage({ type: "fabella-height", height: page.offsetHeight }, "*");
  new ResizeObserver(tell).observe(page);
}
