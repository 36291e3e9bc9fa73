/**
 * What may come from a worker in which a visitor's code has run: such code can send the page whatever it likes. A message
 * is taken only if it has the form that messages.js gives it, and no more of everything than there can be: the page draws
 * what it says, and keeps it.
 */

/** Characters of a token, of a sentence, of what is printed in a frame, and of all that is told for a question. */
const TOKEN = 1000;
const SENTENCE = 2000;
const PRINTED = 10_000;
export const TOLD = 1 << 21;

/** @typedef {(value: unknown) => boolean} Form */

/** @param {number} most  characters @returns {Form} */
const text = (most) => (value) => typeof value === "string" && value.length <= most;

/** @param {unknown[]} values @returns {Form} */
const oneOf =
  (...values) =>
  (value) =>
    values.includes(value);

/** @param {...Form} forms @returns {Form} */
const either =
  (...forms) =>
  (value) =>
    forms.some((form) => form(value));

/** @param {Record<string, Form>} forms @returns {Form} */
const having = (forms) => (value) =>
  typeof value === "object" &&
  value !== null &&
  Object.entries(forms).every(([name, form]) => form(Reflect.get(value, name)));

/** @type {Form} */
const number = (value) => Number.isFinite(value) && /** @type {number} */ (value) >= 0;
/** @type {Form} */
const whole = (value) => Number.isSafeInteger(value) && number(value);
const absent = oneOf(undefined);
/** At least the 48 bytes with which py/fabella/choice.py begins. @type {Form} */
const base64 = (value) => typeof value === "string" && value.length < 1 << 16 && /^[\w+/]{64,}={0,2}$/.test(value);

const step = having({
  token: whole,
  text: text(TOKEN),
  from_prompt: oneOf(true, false),
  dropped: either(whole, absent),
  choice: either(base64, absent),
  probability: either(number, absent),
});

const problem = having({ message: text(SENTENCE), line: either(whole, oneOf(null)) });

/** By the message's type. Those of a worker that starts are not among them. @type {Record<string, Form>} */
const FORMS = {
  calls: having({}),
  called: having({ id: whole, answer: text(1 << 26) }),
  coded: having({ id: whole, printed: text(PRINTED), problem: either(problem, oneOf(null)) }),
  counted: having({ id: whole, tokens: whole, strange: whole }),
  done: having({
    id: whole,
    reason: oneOf("end", "length", "context", "stop", "loop", "stopped", "code"),
    tokens: whole,
    seconds: number,
    tokens_per_second: number,
    problem: either(problem, absent),
  }),
  engine: having({ simd: oneOf("simd", "relaxed"), threads: whole }),
  error: having({ id: whole, field: either(text(TOKEN), oneOf(null)), message: text(SENTENCE) }),
  steps: having({
    id: whole,
    steps: (value) => Array.isArray(value) && value.every(step),
    tokens_per_second: number,
    printed: either(text(PRINTED), absent),
  }),
};

/** Whether it is a message. @param {any} message */
export const isMessage = (message) => {
  const { type } = Object(message);
  return typeof type === "string" && Object.hasOwn(FORMS, type) && FORMS[type](message);
};

/** Characters that a message adds to what is told. @param {import("./messages.js").Steps} message */
export const told = ({ steps }) => steps.reduce((sum, { text }) => sum + text.length + 1, 0);
