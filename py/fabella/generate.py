"""The loop: tokens go in, a token is picked, its text comes out, round again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from fabella.engine import Engine
from fabella.errors import EngineError, PromptError, SettingsError
from fabella.sampler import Sampler, Settings
from fabella.tokenizer import Tokenizer

# A long prompt is read in pieces, so that whoever drives the generator may stop it in between. The engine gives the
# same bits however a prompt is cut.
PREFILL_TOKENS = 128

Reason = Literal["end", "length", "context"]


class Step(NamedTuple):
    """One token of the story.

    Attributes
    ----------
    token
        Its id.
    text
        What it adds to the story: whole characters only, so it may be empty and make up for it in a later step.
    from_prompt
        True if it was given, False if it was sampled.
    end
        None, or in the last step why the story ends: the model said so, the length asked for is reached, or the
        context is full.
    """

    token: int
    text: str
    from_prompt: bool
    end: Reason | None = None


def generate(
    engine: Engine, tokenizer: Tokenizer, prompt: str, settings: Settings, length: int | None = None
) -> Iterator[Step]:
    """Tells a story: yields the prompt's tokens, then the sampled ones.

    Parameters
    ----------
    engine
        The loaded model. The story starts at its position 0 and needs it alone until the last step.
    tokenizer
        The model's own.
    prompt
        How the story begins. May be empty.
    settings
        Temperature, top-p, top-k and seed. The same settings tell the same story on every machine.
    length
        How many positions to compute, the prompt's included, as llama2.c's ``-n``; at most, and with None or 0, the
        context.

    Raises
    ------
    PromptError
        Before the first step, if the prompt leaves no room for a token of the model's own.
    SettingsError
        If the length is below 0, or a token is to be drawn without a seed (0).
    EngineError
        If memory runs out, the model's logits are broken, or the engine was used for something else in between.
    """
    if length is not None and (type(length) is not int or length < 0):
        raise SettingsError("length", f"must be a whole number from 0 on, not {length!r}")
    limit = min(length or engine.context, engine.context)
    limited_by = "the model's context" if limit == engine.context else "the length asked for"
    fewest = tokenizer.fewest_tokens(prompt)
    if fewest > limit:  # a novel is refused before it is encoded
        raise PromptError(f"the prompt is at least {fewest} tokens long, but {limited_by} is {limit}: shorten it")
    tokens = tokenizer.encode(prompt) or [tokenizer.bos_id]  # there must be something to go on from
    if len(tokens) > limit:
        raise PromptError(f"the prompt is {len(tokens)} tokens long, but {limited_by} is {limit}: shorten it")
    return _steps(engine, tokenizer, tokens, Sampler(settings), limit)


def _steps(engine: Engine, tokenizer: Tokenizer, tokens: list[int], sampler: Sampler, limit: int) -> Iterator[Step]:
    decoder = tokenizer.decoder()
    engine.rewind(0)
    for start in range(0, len(tokens), PREFILL_TOKENS):
        part = tokens[start : start + PREFILL_TOKENS]
        logits = engine.prefill(part)
        for token in part:
            text = decoder.push(token)
            if token != tokenizer.bos_id:
                yield Step(token, text, from_prompt=True)

    while True:
        token = sampler.sample(logits)
        if token in tokenizer.stop_ids:
            yield Step(token, decoder.flush(), from_prompt=False, end="end")
            return
        text = decoder.push(token)
        if engine.position == limit:
            end: Reason = "context" if limit == engine.context else "length"
            yield Step(token, text + decoder.flush(), from_prompt=False, end=end)
            return
        position = engine.position
        yield Step(token, text, from_prompt=False)
        if engine.position != position:
            raise EngineError("another story was begun with this engine: this one cannot go on")
        logits = engine.forward(token)
