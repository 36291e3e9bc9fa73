"""The loop: tokens go in, a token is picked, its text comes out, round again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from fabella.errors import PromptError, SettingsError
from fabella.loops import Loops
from fabella.sampler import Allowed, Sampler, Settings
from fabella.session import Model, Session, newest_half
from fabella.stops import Stops
from fabella.tokenizer import Decoder, Tokenizer

if TYPE_CHECKING:
    from fabella.choice import Choice, Visible

Reason = Literal["end", "length", "context", "stop", "loop"]

# Whether a text may go on: it is asked of the text sampled so far and of what a token would add, or None for its end.
Constraint = Callable[[str, str | None], bool]


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
        None, or in the last step why the story ends: the model said so, the length asked for is reached, the context is
        full, a stop string has come, or the story has begun to loop.
    dropped
        How much the model no longer sees, the context being full, if that has become more before this token: of a story
        its oldest tokens, of a conversation its oldest turns, in all.
    choice
        How the token was chosen, if it was not given by the prompt and somebody wants to look (`Ending.look`).
    """

    token: int
    text: str
    from_prompt: bool
    end: Reason | None = None
    dropped: int = 0
    choice: Choice | None = None


@dataclass(frozen=True)
class Ending:
    """When a text ends, besides when the model says so, what may be in it, who picks its tokens, and whether one looks.

    Raises
    ------
    SettingsError
        `field` is the name of what is wrong.
    """

    length: int | None = None  # tokens at most; None or 0: as many as the context holds
    stop: Sequence[str] = ()  # texts before the first of which it ends
    constraint: Constraint | None = None  # what may be in it
    shift: bool = False  # whether, the context full, the oldest half of it is forgotten instead of ending
    loops: bool = False  # whether it ends when it has begun to loop (loops.py)
    look: bool = False  # whether each step says how its token was chosen (choice.py); the model must be an engine
    sampler: Callable[[Settings, Iterable[int]], Sampler] = Sampler  # makes who picks: of the settings, and `spared`

    def __post_init__(self) -> None:
        if self.length is not None and (type(self.length) is not int or self.length < 0):
            raise SettingsError("length", f"must be a whole number from 0 on, not {self.length!r}")
        texts = isinstance(self.stop, (list, tuple))
        if not texts or not all(isinstance(text, str) and text for text in self.stop):
            raise SettingsError("stop", "must be a list of texts, none of them empty")
        if self.constraint is not None and not callable(self.constraint):
            raise SettingsError("constraint", "must be a function of the text so far and of what would come next")
        for name in ("loops", "look"):
            if type(getattr(self, name)) is not bool:
                raise SettingsError(name, f"must be true or false, not {getattr(self, name)!r}")


def generate(
    model: Session | Model,
    tokenizer: Tokenizer,
    prompt: str,
    settings: Settings,
    length: int | None = None,
    ending: Ending | None = None,
    told: Sequence[int] = (),
    forced: Sequence[int | None] = (),
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
        Temperature, top-p, top-k, seed and so on. The same settings tell the same story on every machine.
    length
        How many positions to compute, the prompt's included, as llama2.c's ``-n``; at most, and with None or 0, the
        context. Short for ``Ending(length)``.
    ending
        The same, and when else the story ends.
    told
        To go on with a story: its tokens that were sampled after this prompt and with these settings, all of them. What
        follows is what would have, had it not ended there. They are not told again, nor is the prompt: each part of
        them that is computed yields a step without a text.
    forced
        Tokens to take in the place of the next ones sampled, as in `go_on`: after the tokens told up to some place,
        another way from there. Whether they were told then or drawn, what follows is the same.
        None among them takes what is sampled there.

    Raises
    ------
    PromptError
        Before the first step, if the prompt leaves no room for a token of the model's own, or the story so far none for
        another, or is none.
    SettingsError
        If the length is below 0, or a token is to be drawn without a seed (0).
    EngineError
        If memory runs out, the model's logits are broken, or the session was used for something else in between.
    ConstraintError
        If the constraint forbids whatever could come next.
    """
    session = model if isinstance(model, Session) else Session(model)
    ending = ending or Ending(length)
    if not isinstance(prompt, str):
        raise PromptError("the prompt must be a text")
    settings.check(len(tokenizer))
    context = session.model.context
    limit = min(ending.length or context, context)
    limited_by = "the model's context" if limit == context else "the length asked for"
    fewest = tokenizer.fewest_tokens(prompt)
    if fewest > limit:  # a novel is refused before it is encoded
        raise PromptError(f"the prompt is at least {fewest} tokens long, but {limited_by} is {limit}: shorten it")
    tokens = tokenizer.encode(prompt) or [tokenizer.bos_id]  # there must be something to go on from
    if len(tokens) > limit:
        raise PromptError(f"the prompt is {len(tokens)} tokens long, but {limited_by} is {limit}: shorten it")
    sampler = ending.sampler(settings, tokenizer.stop_ids)
    check_forced([token for token in forced if token is not None], tokenizer)
    if not told:
        return _tell(session, tokenizer, tokens, sampler, ending, forced)
    _check_told(told, tokenizer)
    if len(tokens) + len(told) > limit:
        raise PromptError(
            f"the story is {len(tokens) + len(told)} tokens long, but {limited_by} is {limit}: it cannot go on"
        )
    return _go_on(session, tokenizer, tokens, told, sampler, ending, forced)


def check_forced(forced: Sequence[int], tokenizer: Tokenizer) -> Sequence[int]:
    """Return tokens that are to be taken; PromptError unless the vocabulary has them, and only the last ends a text."""
    if not all(type(token) is int and 0 <= token < len(tokenizer) for token in forced):
        raise PromptError(f"what is to be taken must be tokens of the model's, from 0 to {len(tokenizer) - 1}")
    if not tokenizer.stop_ids.isdisjoint(forced[:-1]):
        raise PromptError("nothing can be taken after the token that ends the text")
    return forced


def _check_told(told: Sequence[int], tokenizer: Tokenizer) -> None:
    """Raise PromptError unless these tokens can be a story that goes on."""
    if not all(type(token) is int and 0 <= token < len(tokenizer) for token in told):
        raise PromptError("what was told must be tokens of the model's")
    if not tokenizer.stop_ids.isdisjoint(told):
        raise PromptError("the story has come to its end: there is nothing to go on with")


def _tell(
    session: Session,
    tokenizer: Tokenizer,
    tokens: list[int],
    sampler: Sampler,
    ending: Ending,
    forced: Sequence[int | None],
) -> Iterator[Step]:
    decoder = tokenizer.decoder()
    for part in session.read(tokens):
        for token in part:
            text = decoder.push(token)
            if token != tokenizer.bos_id:
                yield Step(token, text, from_prompt=True)
    yield from _Text(session, tokenizer, decoder, sampler, ending).go_on(forced)


def _go_on(
    session: Session,
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    told: Sequence[int],
    sampler: Sampler,
    ending: Ending,
    forced: Sequence[int | None],
) -> Iterator[Step]:
    sampler.skip(len(told))
    for part in session.read([*tokens, *told]):
        yield Step(part[-1], "", from_prompt=True)
    decoder = tokenizer.decoder()
    for token in tokens:
        decoder.push(token)
    begun = "".join([decoder.push(token) for token in told])
    yield from _Text(session, tokenizer, decoder, sampler, ending, begun, told).go_on(forced)


def go_on(
    session: Session,
    tokenizer: Tokenizer,
    sampler: Sampler,
    ending: Ending,
    forced: Iterable[int | None] = (),
    begun: str = "",
    told: Sequence[int] = (),
) -> Iterator[Step]:
    """Goes on after the session's last token: yields what is sampled, until the end.

    Parameters
    ----------
    session, tokenizer
        As for `generate`; the session has tokens.
    sampler
        Its random numbers go on as well: with the state that it had at a token, what followed that token follows again.
    ending
        When it ends; its length counts the tokens that the session has.
    forced
        Tokens to take in the place of the first ones sampled. Each uses up its random number, so that those after it
        are drawn as they would have been.
    begun
        What the session's last tokens say of the text that `ending` is about, if some of it is there already.
    told
        Those of them that were sampled, if they are known.

    Raises
    ------
    EngineError, SettingsError, ConstraintError
        As `generate`.
    """
    decoder = tokenizer.decoder()
    for token in session.tokens:
        decoder.push(token)
    return _Text(session, tokenizer, decoder, sampler, ending, begun, told).go_on(forced)


@dataclass
class _Text:
    """A text that a model goes on with."""

    session: Session
    tokenizer: Tokenizer
    decoder: Decoder  # which has seen all of the session's tokens
    sampler: Sampler
    ending: Ending
    said: str = ""  # so far; of tokens sampled here only if there is a constraint
    told: Sequence[int] = ()  # the tokens of it that were sampled before
    forgotten: int = field(default=0, init=False)  # tokens

    def go_on(self, forced: Iterable[int | None]) -> Iterator[Step]:
        session, decoder, stop_ids = self.session, self.decoder, self.tokenizer.stop_ids
        stops, wanted = Stops(self.ending.stop, self.said), iter(forced)
        loops = Loops(self.told) if self.ending.loops else None
        allowed: Allowed | None = self._allowed if self.ending.constraint else None
        while True:
            token, choice = self._next(next(wanted, None), allowed)
            text = "" if token in stop_ids else decoder.push(token)
            end: Reason | None = "end" if token in stop_ids else self._reason()
            if loops and not end and loops.push(token):
                end = "loop"
            if end:
                text += decoder.flush()
            if allowed:
                self.said += text
            text = stops.push(text)
            if stops.found:
                end = "stop"
            if end:
                yield Step(token, text + stops.flush(), from_prompt=False, end=end, choice=choice)
                return
            mark = session.mark
            yield Step(token, text, from_prompt=False, choice=choice)
            session.check(mark)
            if len(session.tokens) == session.model.context:
                yield from self._shift()
            session.forward(token)

    def _next(self, given: int | None, allowed: Allowed | None) -> tuple[int, Choice | None]:
        """The next token: the given one, or else the one sampled; and how it was chosen, if one looks."""
        session, sampler = self.session, self.sampler
        if not self.ending.look:
            token = sampler.sample(session.logits, session.tokens, allowed)
            return token if given is None else given, None
        from fabella.choice import look

        choice = look(sampler, cast("Visible", session.logits), session.tokens, allowed, given)
        return choice.token, choice

    def _reason(self) -> Reason | None:
        """Why no further token can be computed, if none can."""
        count, context = len(self.session.tokens), self.session.model.context
        if count == context and (context < 2 or not self.ending.shift):
            return "context"
        return "length" if count + self.forgotten == self.ending.length else None

    def _shift(self) -> Iterator[Step]:
        """Forgets the oldest half of the session's tokens, but for the token that begins every text."""
        kept = newest_half(self.session.tokens, self.tokenizer.bos_id)
        self.forgotten += len(self.session.tokens) - len(kept)
        dropped = self.forgotten
        for part in self.session.read(kept):
            yield Step(part[-1], "", from_prompt=True, dropped=dropped)
            dropped = 0

    def _allowed(self, token: int) -> bool:
        """Whether the constraint lets this token come next. One that adds no text does not bring the text on."""
        constraint = self.ending.constraint
        assert constraint
        if token in self.tokenizer.stop_ids:
            return constraint(self.said + self.decoder.peek(None), None)
        added = self.decoder.peek(token)
        return added != "" and constraint(self.said, added)
