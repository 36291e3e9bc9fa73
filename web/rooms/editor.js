/**
 * The editor of Python code: CodeMirror in a shadow, whose style sheets are made by script and so need no leave of the
 * page's policy. Its colours are the page's.
 */

import { history, historyKeymap, indentLess, indentMore, standardKeymap, toggleComment } from "@codemirror/commands";
import {
  bracketMatching,
  HighlightStyle,
  indentOnInput,
  indentUnit,
  StreamLanguage,
  syntaxHighlighting,
} from "@codemirror/language";
import { python } from "@codemirror/legacy-modes/mode/python"; // a third of what Lezer's parser of Python takes
import { EditorState, StateEffect, StateField } from "@codemirror/state";
import { Decoration, EditorView, highlightActiveLine, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";

const INDENT = "    ";

const look = EditorView.theme({
  "&": { color: "var(--ink)", backgroundColor: "transparent", fontSize: "0.875rem" },
  "&.cm-focused": { outline: "2px solid var(--rubric)", outlineOffset: "2px" },
  ".cm-scroller": { fontFamily: "ui-monospace, Menlo, Consolas, monospace", lineHeight: "1.5", maxHeight: "28rem" },
  ".cm-content": { caretColor: "var(--rubric)" },
  ".cm-gutters": { color: "var(--quiet)", backgroundColor: "transparent", border: "none" },
  ".cm-activeLine": { backgroundColor: "color-mix(in srgb, var(--rule) 40%, transparent)" },
  ".cm-matchingBracket": { outline: "1px solid var(--edge)", backgroundColor: "transparent" },
  ".cm-wrong": {
    backgroundColor: "color-mix(in srgb, var(--rubric) 18%, transparent)",
    textDecoration: "underline wavy",
  },
});

const colours = HighlightStyle.define([
  { tag: [tags.keyword, tags.operatorKeyword, tags.bool, tags.null], color: "var(--rubric)" },
  { tag: [tags.comment, tags.string], color: "var(--quiet)" },
  { tag: tags.comment, fontStyle: "italic" },
  { tag: tags.definition(tags.variableName), fontWeight: "bold" },
]);

/** The line in which something is wrong, from 1 on; null: none. @type {import("@codemirror/state").StateEffectType<number | null>} */
const mark = StateEffect.define();

const marked = StateField.define({
  create: () => Decoration.none,
  update(lines, transaction) {
    let now = transaction.docChanged ? Decoration.none : lines;
    for (const effect of transaction.effects) {
      if (!effect.is(mark)) continue;
      const { doc } = transaction.state;
      const line = effect.value === null ? null : doc.line(Math.min(effect.value, doc.lines));
      now = line ? Decoration.set(Decoration.line({ class: "cm-wrong" }).range(line.from)) : Decoration.none;
    }
    return now;
  },
  provide: (field) => EditorView.decorations.from(field),
});

/**
 * @param {HTMLElement} host  an empty element
 * @param {string} label
 * @param {string} text
 * @param {{ run: () => void, changed: () => void }} does  run: Ctrl + Enter, or Cmd; changed: by the visitor or by `write`
 */
export function openEditor(host, label, text, { run, changed }) {
  const root = host.attachShadow({ mode: "open" });
  const keys = [
    { key: "Mod-Enter", run: () => (run(), true) },
    ...standardKeymap,
    ...historyKeymap,
    { key: "Mod-[", run: indentLess },
    { key: "Mod-]", run: indentMore },
    { key: "Mod-/", run: toggleComment },
  ];
  const view = new EditorView({
    root,
    parent: root,
    state: EditorState.create({
      doc: text,
      extensions: [
        lineNumbers(),
        history(),
        highlightActiveLine(),
        indentUnit.of(INDENT),
        indentOnInput(),
        bracketMatching(),
        StreamLanguage.define(python),
        syntaxHighlighting(colours),
        marked,
        look,
        keymap.of(keys), // not Tab, which leads on to what follows the editor
        EditorView.contentAttributes.of({ "aria-label": label }),
        EditorView.updateListener.of((update) => update.docChanged && changed()),
      ],
    }),
  });
  return {
    focus: () => view.focus(),
    read: () => view.state.doc.toString(),
    /** @param {string} text */
    write: (text) => view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: text } }),
    /** @param {number | null} line  that is wrong; it is brought into view */
    mark(line) {
      const at = line === null ? null : view.state.doc.line(Math.min(line, view.state.doc.lines)).from;
      const show = at === null ? [] : [EditorView.scrollIntoView(at, { y: "center" })];
      view.dispatch({ effects: [mark.of(line), ...show] });
    },
  };
}
