/** Dark or light: as the browser says, or as the visitor does. */

import { element } from "../dom.js";
import { recall, remember } from "../memory.js";

const KEY = "light";

export function mountLight() {
  const button = element("light", HTMLButtonElement);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  function draw() {
    const chosen = recall(KEY);
    if (chosen === "dark" || chosen === "light") root.dataset.light = chosen;
    else delete root.dataset.light;
    const isDark = chosen ? chosen === "dark" : dark.matches;
    button.textContent = isDark ? "Light" : "Dark";
  }

  draw();
  dark.addEventListener("change", draw);
  button.addEventListener("click", () => {
    const wanted = button.textContent === "Light" ? "light" : "dark";
    remember(KEY, (wanted === "dark") === dark.matches ? "" : wanted);
    draw();
  });
}
