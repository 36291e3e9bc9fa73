/** The story on the page: paragraphs that grow word by word. */
export class Story {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
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
        paragraph.setAttribute("dir", "auto"); // from right to left, if the text says so
        if (line === "\n") paragraph.className = "blank";
      }
      if (given) {
        const last = paragraph.lastElementChild ?? paragraph.appendChild(document.createElement("span"));
        last.className = "given";
        last.append(line);
      } else {
        paragraph.append(line);
        paragraph.normalize();
      }
    }
  }
}
