"""The loop: tokens go in, a token is picked, its text comes out, round again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from fabella.errors import PromptError, SettingsError
from fabella.sampler import Sampler, Settings
from fabella.session import Model, Session
from fabella.tokenizer import Decoder, Tokenizer

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
    model: Session | Model, tokenizer: Tokenizer, prompt: str, settings: Settings, length: int | None = None
) -> Iterator[Step]:
    """Tells a story: yields the prompt's tokens, then the sampled ones.

    Parameters
    ----------
    model
        The loaded model, or a session of it, which may hold the prompt's beginning already. The story takes the place
        of what it holds, and needs it alone until the last step.
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
        If memory runs out, the model's logits are broken, or the session was used for something else in between.
    """
    session = model if isinstance(model, Session) else Session(model)
    context = session.model.context
    if length is not None and (type(length) is not int or length < 0):
        raise SettingsError("length", f"must be a whole number from 0 on, not {length!r}")
    limit = min(length or context, context)
    limited_by = "the model's context" if limit == context else "the length asked for"
    fewest = tokenizer.fewest_tokens(prompt)
    if fewest > limit:  # a novel is refused before it is encoded
        raise PromptError(f"the prompt is at least {fewest} tokens long, but {limited_by} is {limit}: shorten it")
    tokens = tokenizer.encode(prompt) or [tokenizer.bos_id]  # there must be something to go on from
    if len(tokens) > limit:
        raise PromptError(f"the prompt is {len(tokens)} tokens long, but {limited_by} is {limit}: shorten it")
    return _tell(session, tokenizer, tokens, Sampler(settings), limit)


def _tell(session: Session, tokenizer: Tokenizer, tokens: list[int], sampler: Sampler, limit: int) -> Iterator[Step]:
    decoder = tokenizer.decoder()
    for part in session.read(tokens):
        for token in part:
            text = decoder.push(token)
            if token != tokenizer.bos_id:
                yield Step(token, text, from_prompt=True)
    yield from _go_on(session, tokenizer, decoder, sampler, limit, ())


def go_on(
    session: Session, tokenizer: Tokenizer, sampler: Sampler, limit: int, forced: Iterable[int] = ()
) -> Iterator[Step]:
    """Goes on after the session's last token: yields what is sampled, until the end.

    Parameters
    ----------
    session, tokenizer
        As for `generate`; the session has tokens.
    sampler
        Its random numbers go on as well: with the state that it had at a token, what followed that token follows again.
    limit
        How many tokens the session may hold.
    forced
        Tokens to take in the place of the first ones sampled. Each uses up its random number, so that those after it
        are drawn as they would have been.

    Raises
    ------
    EngineError, SettingsError
        As `generate`.
    """
    decoder = tokenizer.decoder()
    for token in session.tokens:
        decoder.push(token)
    return _go_on(session, tokenizer, decoder, sampler, limit, forced)


def _go_on(
    session: Session, tokenizer: Tokenizer, decoder: Decoder, sampler: Sampler, limit: int, forced: Iterable[int]
) -> Iterator[Step]:
    wanted = iter(forced)
    while True:
        token = next(wanted, sampler.sample(session.logits))
        if token in tokenizer.stop_ids:
            yield Step(token, decoder.flush(), from_prompt=False, end="end")
            return
        text = decoder.push(token)
        if len(session.tokens) == limit:
            end: Reason = "context" if limit == session.model.context else "length"
            yield Step(token, text + decoder.flush(), from_prompt=False, end=end)
            return
        mark = session.mark
        yield Step(token, text, from_prompt=False)
        session.check(mark)
        session.forward(token)
