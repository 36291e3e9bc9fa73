/**
 * Fabella in any page:
 *
 *     <script type="module" src="https://your.page/fabella.js"></script>
 *     <fabella-story prompt="Once upon a time" seed="1"></fabella-story>
 *
 * An element shows the page beside which this script lies, in a frame. What it says goes there in the fragment of the
 * address, which no server sees; what comes back is the height of the text, and nothing else.
 */

const PAGE = new URL("./", import.meta.url);

/** What goes into the address, by its name there. */
const ATTRIBUTES = { m: "model", p: "prompt", s: "seed" };

const style = new CSSStyleSheet(); // which a strict policy of the page around allows
style.replaceSync(`
  :host { display: block }
  :host([hidden]) { display: none }
  iframe { display: block; width: 100%; height: 26rem; border: 0 }
`);

class Fabella extends HTMLElement {
  static observedAttributes = [...Object.values(ATTRIBUTES), "title"];
  /** As screen readers call the frame, unless the element has a title. */
  label = "";
  /** What the visitor and the model do: "story" or "chat". */
  mode = "";
  /** @type {HTMLIFrameElement | null} */
  #frame = null;

  connectedCallback() {
    const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [style];
    this.#frame = document.createElement("iframe");
    this.#frame.src = this.#address();
    this.#frame.title = this.title || this.label;
    this.#frame.allow = "cross-origin-isolated"; // threads, where the page around is isolated as well
    this.#frame.loading = "lazy";
    root.replaceChildren(this.#frame);
    addEventListener("message", this);
  }

  disconnectedCallback() {
    removeEventListener("message", this);
    this.#frame = null;
  }

  /** Only the fragment is another: the page within is told, and not loaded anew. */
  attributeChangedCallback() {
    if (this.#frame) this.#frame.title = this.title || this.label;
    this.#frame?.contentWindow?.location.replace(this.#address());
  }

  /** @param {MessageEvent} event */
  handleEvent({ source, origin, data }) {
    const frame = this.#frame;
    if (!frame || source !== frame.contentWindow || origin !== PAGE.origin) return;
    if (data?.type === "fabella-height" && Number.isFinite(data.height)) frame.style.height = `${data.height}px`;
  }

  #address() {
    const words = new URLSearchParams({ view: "leaf", mode: this.mode });
    for (const [name, attribute] of Object.entries(ATTRIBUTES)) {
      const value = this.getAttribute(attribute);
      if (value !== null) words.set(name, value);
    }
    return `${PAGE}#${words}`;
  }
}

class FabellaStory extends Fabella {
  label = "A story, told by a small language model";
  mode = "story";
}

class FabellaChat extends Fabella {
  label = "A conversation with a small language model";
  mode = "chat";
}

customElements.define("fabella-story", FabellaStory);
customElements.define("fabella-chat", FabellaChat);
