/** The story on the page: paragraphs that grow word by word. */
export class Story {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.fades = matchMedia("(prefers-reduced-motion: no-preference)");
    // Words that have faded in become plain text, so that a finished story is nothing but paragraphs.
    element.addEventListener("animationend", ({ target }) => {
      if (target instanceof HTMLElement && target.className === "fresh") {
        const paragraph = target.parentElement;
        target.replaceWith(...target.childNodes);
        paragraph?.normalize();
      }
    });
  }

  clear() {
    this.element.replaceChildren();
  }

  /**
   * Adds text at the end; every newline closes a paragraph. The element's textContent is the story to the letter.
   * @param {string} text
   * @param {boolean} given  whether the text is the visitor's own
   */
  add(text, given) {
    for (const line of text.match(/[^\n]*\n|[^\n]+/g) ?? []) {
      let paragraph = this.element.lastElementChild;
      if (!paragraph || paragraph.textContent?.endsWith("\n")) {
        paragraph = this.element.appendChild(document.createElement("p"));
        if (line === "\n") paragraph.className = "blank";
      }
      if (given) {
        const last = paragraph.lastElementChild;
        (last ?? paragraph.appendChild(this.#ink("given"))).append(line);
      } else if (this.fades.matches) {
        paragraph.appendChild(this.#ink("fresh")).append(line);
      } else {
        paragraph.append(line);
        paragraph.normalize();
      }
    }
  }

  /** @param {"given" | "fresh"} kind */
  #ink(kind) {
    const span = document.createElement("span");
    span.className = kind;
    return span;
  }
}
