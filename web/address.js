/** What the page's address says, in its fragment alone, which no server ever sees. */

/**
 * @param {string} fragment  "#view=leaf&p=Once&s=1&m=stories": as of a URL
 * @returns {{ leaf: boolean, prompt: string | null, seed: string | null, model: string | null }} null: says nothing
 */
export function readAddress(fragment) {
  const words = new URLSearchParams(fragment.slice(1));
  return { leaf: words.get("view") === "leaf", prompt: words.get("p"), seed: words.get("s"), model: words.get("m") };
}
