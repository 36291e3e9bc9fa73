/** Elements and their style, shorter to write down. */

/**
 * @template {keyof HTMLElementTagNameMap} Name
 * @param {Name} name
 * @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} content
 * @returns {HTMLElementTagNameMap[Name]}
 */
export function make(name, attributes = {}, ...content) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...content);
  return element;
}

/** @param {string} text @param {() => void} act @param {string} [label] */
export function button(text, act, label = "") {
  const button = make("button", { type: "button", ...(label && { "aria-label": label }) }, text);
  button.addEventListener("click", act);
  return button;
}

/** Gives the page the style of a room, as its policy allows. @param {string} css */
export function dress(css) {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(css);
  document.adoptedStyleSheets.push(sheet);
}
