/** Tells the story at least `spec.stories` times and for `spec.seconds`: the first one is told by code not yet optimised. */
export async function repeat(spec, tell) {
  const stories = [];
  const started = performance.now();
  while (stories.length < spec.stories || performance.now() - started < spec.seconds * 1000) stories.push(await tell());
  return stories;
}

/** Answers the page's one question with what `measure` finds. */
export function serve(measure) {
  globalThis.onmessage = async ({ data: spec }) => {
    try {
      postMessage(await measure(spec));
    } catch (error) {
      postMessage({ error: String(error?.stack ?? error) });
    }
  };
}

/** A story by an engine that computes step by step: `prefill(ids)` and `next(token, position)` return the likeliest token. */
export async function stepByStep(spec, prefill, next) {
  let tokens = [];
  const stories = await repeat(spec, async () => {
    const started = performance.now();
    let token = await prefill(spec.ids);
    const prefilled = performance.now();
    tokens = [token];
    for (let i = 0; i < spec.tokens; i++) {
      token = await next(token, spec.ids.length + i);
      tokens.push(token);
    }
    return { prefill_ms: prefilled - started, decode_ms: performance.now() - prefilled, decoded: spec.tokens };
  });
  return { stories, tokens };
}

/** The likeliest token: the index of the largest logit. */
export function likeliest(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}
