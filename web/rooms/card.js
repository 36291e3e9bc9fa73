/** A picture of a text, as a leaf of the book: drawn on a canvas of this page, and seen by nobody else. */

/**
 * @typedef {object} Block
 * @property {string} label  who says it; "" in a story
 * @property {string} text
 * @property {number} given  so much of its beginning is the visitor's
 *
 * @typedef {object} Line
 * @property {[text: string, isGiven: boolean][]} pieces
 * @property {number} indent  pixels from where lines begin
 */

const WIDTH = 1080;
const HIGHEST = 12_000; // what every browser can draw
const MARGIN = 96;
const SIZE = 38;
const LINE = 60;
const SERIF =
  '"Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", P052, "Book Antiqua", Georgia, serif';

/** As in style.css. */
const LIGHT = { paper: "#f8f2e4", ink: "#2a211b", quiet: "#6b5c4b", rubric: "#8f2d1c", rule: "#dccfb6" };
const DARK = { paper: "#1c1714", ink: "#ebe1cf", quiet: "#b3a48d", rubric: "#e58d6c", rule: "#3d342c" };

/** Letters that are written from right to left. */
const RIGHT_TO_LEFT = /^[^\p{L}]*[\u0590-\u08FF\uFB1D-\uFDFF\uFE70-\uFEFC]/u;

/** An initial two lines high: how much larger than the text, and pixels to its right. */
const INITIAL = 2.95;
const BESIDE = 12;

/**
 * @param {HTMLCanvasElement} canvas
 * @param {{ blocks: Block[], title: string, below: string, dark: boolean }} picture
 */
export function draw(canvas, { blocks, title, below, dark }) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const colours = dark ? DARK : LIGHT;
  const font = (/** @type {number} */ size, style = "") => {
    context.font = `${style} ${size}px ${SERIF}`;
  };
  const room = WIDTH - 2 * MARGIN;

  font(SIZE);
  const said = blocks.map((block) => lay(context, block, room, blocks.length === 1, font));
  const rows = said.reduce((sum, { lines, label }) => sum + lines.length + (label ? 1.4 : 0), 0);
  font(26, "italic");
  const signed = wrap(context, [[below, false]], room).map(({ pieces }) => pieces.map(([text]) => text).join(""));
  const head = MARGIN + 96;
  const foot = 64 + 36 * signed.length + MARGIN * 0.75;
  const height = Math.min(Math.ceil(head + rows * LINE + foot), HIGHEST);
  canvas.width = WIDTH; // this clears it, and forgets the font
  canvas.height = height;
  context.textBaseline = "alphabetic";
  context.fillStyle = colours.paper;
  context.fillRect(0, 0, WIDTH, height);

  context.fillStyle = colours.rubric;
  font(34);
  context.fillText(title, MARGIN, MARGIN, room);
  context.fillRect(MARGIN, MARGIN + 22, 120, 2);
  context.fillRect(MARGIN, MARGIN + 27, 120, 2);

  let y = head + SIZE;
  const end = height - foot;
  for (const { label, lines, initial, isRight } of said) {
    context.direction = isRight ? "rtl" : "ltr";
    const start = isRight ? WIDTH - MARGIN : MARGIN;
    const forwards = isRight ? -1 : 1;
    context.textAlign = "start";
    if (label && y < end) {
      context.fillStyle = colours.rubric;
      font(28);
      context.fillText(label, start, y);
      y += LINE * 0.8;
    }
    if (initial) {
      context.fillStyle = colours.rubric;
      font(SIZE * INITIAL);
      context.fillText(initial, start, y + LINE);
    }
    font(SIZE);
    for (const [index, { pieces, indent }] of lines.entries()) {
      if (y > end) break;
      const isLast = y + LINE > end && index < lines.length - 1; // what follows has no room
      let x = start + forwards * indent;
      for (const [text, isGiven] of isLast ? [...pieces, /** @type {[string, boolean]} */ ([" …", false])] : pieces) {
        context.fillStyle = isGiven ? colours.quiet : colours.ink;
        context.fillText(text, x, y);
        x += forwards * context.measureText(text).width;
      }
      y += LINE;
    }
    if (label) y += LINE * 0.6;
  }

  context.direction = "ltr";
  context.fillStyle = colours.rule;
  context.fillRect(MARGIN, height - foot + 28, room, 2);
  context.fillStyle = colours.quiet;
  font(26, "italic");
  signed.forEach((line, index) => context.fillText(line, MARGIN, height - foot + 76 + 36 * index));
}

/** What a reader takes for a character, as far as the browser knows. @param {string} word @returns {string[]} */
const characters = (word) =>
  "Segmenter" in Intl ? Array.from(new Intl.Segmenter().segment(word), ({ segment }) => segment) : [...word];

/**
 * Breaks a block into lines.
 * @param {CanvasRenderingContext2D} context  with the text's font
 * @param {Block} block
 * @param {number} room  pixels
 * @param {boolean} isStory  which begins with an initial
 * @param {(size: number) => void} font
 */
function lay(context, { label, text: whole, given: all }, room, isStory, font) {
  const text = whole.trimStart();
  let given = Math.max(0, all - (whole.length - text.length));
  const isRight = RIGHT_TO_LEFT.test(text);
  const [initial = ""] = isStory && !label && !isRight ? (/^\p{Lu}/u.exec(text) ?? []) : [];
  let beside = 0;
  if (initial) {
    font(SIZE * INITIAL);
    beside = context.measureText(initial).width + BESIDE;
    font(SIZE);
  }
  /** @type {Line[]} */
  const lines = [];
  for (const [index, paragraph] of text.slice(initial.length).trimEnd().split("\n").entries()) {
    const length = paragraph.length + (index === 0 ? initial.length : 0);
    const cut = Math.max(0, Math.min(given - (index === 0 ? initial.length : 0), paragraph.length));
    given -= length + 1;
    if (!paragraph.trim()) continue;
    /** @type {Line["pieces"]} */
    const pieces = [
      [paragraph.slice(0, cut), true],
      [paragraph.slice(cut), false],
    ];
    const indents = index === 0 && initial ? [beside, beside] : index === 0 || label ? [0] : [SIZE * 1.5];
    lines.push(...wrap(context, pieces, room, indents));
  }
  if (initial && lines.length === 1) lines.push({ pieces: [], indent: 0 }); // or it would stand in what follows
  return { label, lines, initial, isRight };
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Line["pieces"]} pieces  of a paragraph
 * @param {number} room
 * @param {number[]} [indents]  of its first lines
 * @returns {Line[]}
 */
function wrap(context, pieces, room, indents = []) {
  /** @type {Line[]} */
  const lines = [];
  /** @type {Line} */
  let line = { pieces: [], indent: indents[0] ?? 0 };
  let x = line.indent;
  const next = () => {
    lines.push(line);
    line = { pieces: [], indent: indents[lines.length] ?? 0 };
    x = line.indent;
  };
  const put = (/** @type {string} */ text, /** @type {boolean} */ isGiven) => {
    const width = context.measureText(text).width;
    if (x + width > room && text.trim() && line.pieces.length > 0) next();
    if (!text.trim() && line.pieces.length === 0 && lines.length > 0) return; // no line begins with a space
    const before = line.pieces.at(-1);
    if (before && before[1] === isGiven) before[0] += text;
    else line.pieces.push([text, isGiven]);
    x += width;
  };
  for (const [text, isGiven] of pieces) {
    for (const word of text.match(/\s+|\S+/g) ?? []) {
      if (context.measureText(word).width <= room) put(word, isGiven);
      else for (const character of characters(word)) put(character, isGiven); // as where words have no spaces
    }
  }
  if (line.pieces.length > 0) next();
  return lines;
}
