/**
 * Markdown as elements: what a model writes becomes text nodes in elements that are named here, and nothing else. HTML in
 * it stays text, pictures are not fetched, links lead to web pages only.
 */

import { lexer } from "marked";

/** @import { Token, Tokens } from "marked" */

/** Blocks of a text, of which only those are drawn anew that have changed. */
export class Blocks {
  /** @type {string[]} */
  #drawn = [];

  /**
   * @param {HTMLElement} element
   * @param {(code: string) => Promise<boolean>} copy
   */
  constructor(element, copy) {
    this.element = element;
    this.copy = copy;
  }

  /** @param {string} text */
  draw(text) {
    const tokens = lexer(text).filter(({ type }) => type !== "space" && type !== "def");
    let same = 0;
    while (same < tokens.length && tokens[same].raw === this.#drawn[same]) same++;
    while (this.element.childNodes.length > same) this.element.lastChild?.remove();
    for (const token of tokens.slice(same)) this.element.append(block(token, this.copy));
    this.#drawn = tokens.map(({ raw }) => raw);
  }
}

/**
 * @param {string} name
 * @param {(Node | string)[]} content
 */
function make(name, content) {
  const element = document.createElement(name);
  element.append(...content);
  return element;
}

/** @param {Token} token @param {Blocks["copy"]} copy @returns {Node} */
function block(token, copy) {
  switch (token.type) {
    case "heading":
      return directed(make(`h${Math.min(token.depth + 2, 6)}`, inline(token.tokens ?? []))); // below the page's own
    case "paragraph":
      return directed(make("p", inline(token.tokens ?? [])));
    case "blockquote":
      return make(
        "blockquote",
        (token.tokens ?? []).map((inner) => block(inner, copy)),
      );
    case "list":
      return list(/** @type {Tokens.List} */ (token), copy);
    case "table":
      return table(/** @type {Tokens.Table} */ (token));
    case "hr":
      return make("hr", []);
    case "code":
      return code(token.text, copy);
    case "text":
      return directed(make("p", inline("tokens" in token && token.tokens ? token.tokens : [token])));
    default:
      return directed(make("p", [token.raw]));
  }
}

/** @param {HTMLElement} element */
function directed(element) {
  element.dir = "auto"; // from right to left, if the text says so
  return element;
}

/** @param {Tokens.List} token @param {Blocks["copy"]} copy */
function list({ ordered, start, items }, copy) {
  const element = make(
    ordered ? "ol" : "ul",
    items.map(({ tokens, task, checked }) => {
      const content = tokens.map((inner) => (inner.type === "text" ? span(inner) : block(inner, copy)));
      return directed(make("li", task ? [checked ? "☑ " : "☐ ", ...content] : content));
    }),
  );
  if (ordered && typeof start === "number" && start !== 1) element.setAttribute("start", String(start));
  return element;
}

/** @param {Token} token */
const span = (token) => make("span", inline("tokens" in token && token.tokens ? token.tokens : [token]));

/** @param {Tokens.Table} token */
function table({ header, rows }) {
  const row = (/** @type {Tokens.TableCell[]} */ cells, /** @type {string} */ name) =>
    make(
      "tr",
      cells.map(({ tokens }) => directed(make(name, inline(tokens)))),
    );
  const head = make("thead", [row(header, "th")]);
  const body = make(
    "tbody",
    rows.map((cells) => row(cells, "td")),
  );
  const wide = make("div", [make("table", [head, body])]);
  wide.className = "wide";
  wide.tabIndex = 0; // so that a keyboard can scroll it
  return wide;
}

/** @param {string} text @param {Blocks["copy"]} copy */
function code(text, copy) {
  const button = make("button", ["Copy"]);
  button.setAttribute("type", "button");
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text)) ? "Copied" : "Not allowed";
  });
  const pre = make("pre", [make("code", [text])]);
  pre.tabIndex = 0;
  const box = make("div", [button, pre]);
  box.className = "code";
  return box;
}

/** @param {Token[]} tokens @returns {(Node | string)[]} */
function inline(tokens) {
  return tokens.map((token) => {
    const inner = () => inline("tokens" in token ? (token.tokens ?? []) : []);
    switch (token.type) {
      case "strong":
        return make("strong", inner());
      case "em":
        return make("em", inner());
      case "del":
        return make("del", inner());
      case "codespan":
        return make("code", [token.text]);
      case "br":
        return make("br", []);
      case "link":
        return link(token.href, inner());
      case "image":
        return token.text;
      case "escape":
        return token.text;
      case "text":
        return "tokens" in token && token.tokens ? make("span", inline(token.tokens)) : plain(token);
      default:
        return token.raw;
    }
  });
}

/** What the text says to the letter: the lexer's own `text` is escaped for HTML in places. @param {Token} token */
const plain = (token) => token.raw;

/** @param {string} href @param {(Node | string)[]} content */
function link(href, content) {
  if (!/^https?:\/\//i.test(href)) return make("span", content);
  const anchor = make("a", content);
  anchor.setAttribute("href", href);
  anchor.setAttribute("rel", "noopener noreferrer nofollow");
  anchor.setAttribute("target", "_blank");
  return anchor;
}
