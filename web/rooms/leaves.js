/** The shelf's stories and conversations: to be read again, renamed, searched, taken along, and forgotten. */

import { all, forget, fromJSON, keep, rename as renameKept, toJSON } from "../kept.js";
import { finished, newId, plainText, titleOf } from "../leaf.js";
import { wholeNumber } from "../words.js";
import { button, make } from "./make.js";

/** @import { Leaf } from "../leaf.js" */
/** @import { House } from "./shelf.js" */

/**
 * @param {House} house
 * @param {() => void} close
 */
export function leaves(house, close) {
  const search = make("input", { type: "search", "aria-label": "Search", placeholder: "Search" });
  const rows = make("ul", { class: "rows" });
  const said = make("p", { class: "hint", role: "status" });
  const input = make("input", { type: "file", accept: ".json,application/json", multiple: "", hidden: "" });
  const tools = make(
    "p",
    { class: "actions" },
    button("Export all", () => save(shown)),
    button("Import", () => input.click()),
    input,
  );
  const root = make("div", {}, search, rows, said, tools);
  /** @type {Leaf[]} */
  let kept = [];
  let shown = kept;

  search.addEventListener("input", list);
  input.addEventListener("change", () => {
    take([...(input.files ?? [])]);
    input.value = "";
  });

  async function draw() {
    const { keeping } = house.current();
    kept = await all().catch(() => []);
    said.textContent = keeping;
    tools.hidden = Boolean(keeping);
    list();
  }

  function list() {
    const words = search.value.toLowerCase();
    shown = kept.filter((leaf) => `${titleOf(leaf)}\n${plainText(leaf)}`.toLowerCase().includes(words));
    rows.replaceChildren(...shown.map(row));
    if (!house.current().keeping) {
      said.textContent =
        kept.length === 0 ? "Nothing is kept yet." : shown.length === 0 ? "Nothing has these words." : "";
    }
  }

  /** @param {Leaf} leaf */
  function row(leaf) {
    const title = titleOf(leaf);
    const here = leaf.id === house.current().leaf?.id;
    const open = button(title, () => show(leaf), `Open ${title}`);
    open.className = "title plain";
    const item = make("li", {});
    const name = button("rename", () => rename(leaf, item), `rename ${title}`);
    const away = button("delete", () => ask(leaf, item), `delete ${title}`);
    item.append(
      open,
      make(
        "span",
        { class: "hint" },
        [leaf.model.name, when(leaf.changed), ways(leaf), here && "open"].filter(Boolean).join(" · "),
      ),
      make(
        "span",
        { class: "actions" },
        name,
        button("export", () => save([leaf]), `export ${title}`),
        away,
      ),
    );
    return item;
  }

  /** @param {Leaf} leaf */
  function show(leaf) {
    house.abandon();
    house.versions.set(leaf.id, leaf.changed);
    house.change({ leaf: finished(leaf), mode: leaf.kind, ended: null, complaint: null });
    if (leaf.kind === "story") house.change({ prompt: leaf.turns[leaf.picked[""] ?? 0]?.text ?? "" });
    close();
  }

  /** @param {Leaf} leaf @param {HTMLElement} item */
  function rename(leaf, item) {
    const box = make("input", { type: "text", "aria-label": "New name", maxlength: "80" });
    box.value = titleOf(leaf);
    const done = async () => {
      const title = box.value.trim();
      await renameKept(leaf.id, title);
      const { leaf: here } = house.current();
      if (here?.id === leaf.id) house.change({ leaf: { ...here, title } });
      await draw();
      search.focus();
    };
    box.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") done();
      if (event.key === "Escape") {
        event.preventDefault();
        draw();
      }
    });
    item.replaceChildren(box, make("span", { class: "actions" }, button("Save", done), button("Leave it", draw)));
    box.select();
  }

  /** @param {Leaf} leaf @param {HTMLElement} item */
  function ask(leaf, item) {
    const away = button("Delete for good", async () => {
      if (house.current().leaf?.id === leaf.id) {
        house.abandon();
        house.change({ leaf: null });
      }
      await forget(leaf.id);
      await draw();
      search.focus();
    });
    item.replaceChildren(titleOf(leaf), make("span", { class: "actions" }, away, button("Leave it", draw)));
    item.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault(); // or else the shelf would be closed
      draw();
    });
    away.focus();
  }

  /** @param {File[]} files */
  async function take(files) {
    try {
      for (const file of files) {
        const read = fromJSON(await file.text());
        for (const leaf of read) await keep(kept.some(({ id }) => id === leaf.id) ? { ...leaf, id: newId() } : leaf);
        await draw();
        said.textContent = `${wholeNumber(read.length)} from ${file.name}.`;
      }
    } catch (error) {
      said.textContent = `${files[0].name}: ${/** @type {Error} */ (error).message}`;
    }
  }

  return { element: root, draw, take };
}

/** Hands a JSON file to the browser's downloads. @param {Leaf[]} leaves */
function save(leaves) {
  const url = URL.createObjectURL(new Blob([toJSON(leaves)], { type: "application/json" }));
  const name = leaves.length === 1 ? titleOf(leaves[0]).slice(0, 40) : "fabella";
  make("a", { href: url, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** @param {number} time */
const when = (time) => new Date(time).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });

/** @param {Leaf} leaf */
function ways({ turns }) {
  const told = turns.filter(({ role }) => role === "assistant").length;
  return told > 1 ? `${told} answers` : "";
}
