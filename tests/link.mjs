/** web/rooms/link.js for Python: a request a line, as JSON, ["function", argument, ...]; and a line for each answer. */

import { createInterface } from "node:readline";
import { Damaged, compare, format, markOf, pack, parse, unpack } from "../web/rooms/link.js";
import { write } from "../web/address.js";
import { markdown } from "../web/rooms/texts.js";

const functions = { compare, format, markOf, markdown, pack, parse, unpack, write };

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...given] = JSON.parse(line);
  let answer;
  try {
    answer = { answer: await functions[name](...given) };
  } catch (error) {
    answer = error instanceof Damaged ? { damaged: error.message } : { failed: `${error.stack}` };
  }
  console.log(JSON.stringify(answer));
}
