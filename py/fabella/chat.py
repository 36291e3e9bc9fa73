"""A conversation: turns, written down by the model's own template, of which the model computes what is new.

It is no mechanism of its own. For each answer the turns become one list of tokens, which the session reads (what it has
computed already stays), and which the loop goes on with. The text is the truth: whoever has a conversation's text, has
the same tokens, and so the same answers, however it came about.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from fabella.errors import ConversationError, PromptError, SettingsError, TemplateError
from fabella.generate import Ending, Reason, Step, check_forced, go_on
from fabella.modelfile import ModelFile
from fabella.sampler import Sampler, Settings
from fabella.session import Session
from fabella.template import ChatTemplate, Message
from fabella.tokenizer import Tokenizer, well_formed

ROOM = 4  # an answer whose length nobody limits has this part of the context, at least


@dataclass
class Turn:
    """What one side said.

    Attributes
    ----------
    role
        Who.
    text
        What.
    end
        Of an answer: why it ended, None if it was stopped or is not done.
    tokens
        Of an answer that was sampled here: its tokens.
    """

    role: Literal["user", "assistant"]
    text: str
    end: Reason | None = None
    tokens: tuple[int, ...] = ()


def template_of(model: ModelFile) -> ChatTemplate:
    """Return a model's chat template.

    Raises
    ------
    TemplateError
        If it has none, or one that is none.
    """
    source = model.chat_template
    if source is None:
        raise TemplateError("this model has no chat template: it is not made for conversations, it goes on with a text")
    tokenizer = model.tokenizer
    bos, eos = (tokenizer.pieces[id] for id in (tokenizer.bos_id, tokenizer.eos_id))
    return ChatTemplate(source, bos, eos, tokenizer.controls)


class Scribe:
    """Writes conversations down as a model wants to read them: as text, and as tokens."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template

    @cached_property
    def _has_system_role(self) -> bool:
        """Whether the template writes a system prompt down. Where it does not, the first turn begins with it."""
        probe = "A text that no template has of its own."
        try:
            return probe in self._template.plain(
                self._template.render([_message("system", probe), _message("user", "")])
            )
        except TemplateError:
            return False

    def written(self, turns: Sequence[Turn], system: str | None = None, prompted: bool = True) -> str:
        """Write turns down, in disguise; if ``prompted`` up to where an answer begins, else as far as they go."""
        messages = [_message(turn.role, turn.text) for turn in turns]
        if system is not None and self._has_system_role:
            messages.insert(0, _message("system", system))
        elif system and messages:
            messages[0] = _message("user", f"{system}\n\n{turns[0].text}")
        return self._template.render(messages, add_generation_prompt=prompted)

    def disguised(self, text: str) -> str:
        """Return a text as it looks within what is written down."""
        return self._template.disguised(well_formed(text))

    def encoded(self, text: str) -> list[int]:
        """Return the tokens of what is written down."""
        parts = self._tokenizer.cut(text)
        plain = self._template.plain
        return self._tokenizer.encode_parts(part if isinstance(part, int) else plain(part) for part in parts)


class Conversation:
    """Turns of a user and a model.

    Parameters
    ----------
    session
        The model's. Others may use it between two answers, which then take longer.
    tokenizer, template
        The model's own.
    system
        What the model is told before the first turn; None: whatever the template says.

    Attributes
    ----------
    turns : list of Turn
        From the first to the last: the user's and the model's, by turns.
    dropped : int
        How many of the first ones the model no longer sees, because the context is full.
    """

    def __init__(
        self, session: Session, tokenizer: Tokenizer, template: ChatTemplate, system: str | None = None
    ) -> None:
        self.turns: list[Turn] = []
        self.dropped = 0
        self._session = session
        self._tokenizer = tokenizer
        self._scribe = Scribe(tokenizer, template)
        self.system = system

    @property
    def system(self) -> str | None:
        """What the model is told before the first turn."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if text is not None and not isinstance(text, str):
            raise PromptError("the system prompt must be a text")
        self._system = text

    # ---- Going on ----------------------------------------------------------------------------------------------------

    def say(self, text: str, settings: Settings, ending: Ending | None = None) -> Iterator[Step]:
        """Say something; yield the answer.

        Parameters
        ----------
        text
            What the user says.
        settings
            How the answer's tokens are picked.
        ending
            When the answer ends; its length is that of the answer.

        Yields
        ------
        A step for each part of the conversation that is computed (`from_prompt`, without a text; the first says how
        many turns the model no longer sees, if these have become more), then one for each token of the answer. With its
        first token the answer takes its place among the turns; whoever asks for no more tokens has stopped it, and it
        stays as it is.

        Raises
        ------
        ConversationError
            If the last turn has no answer.
        PromptError
            If the text is too long for the context, whatever else goes.
        EngineError, SettingsError, ConstraintError, TemplateError
            As elsewhere.
        """
        if not isinstance(text, str):
            raise PromptError("what is said must be a text")
        if self.turns and self.turns[-1].role == "user":
            raise ConversationError("the last turn has no answer yet: regenerate that, or undo the turn")
        return self._answered([*self.turns, Turn("user", text)], settings, ending)

    def regenerate(self, settings: Settings, ending: Ending | None = None) -> Iterator[Step]:
        """Answer the last turn of the user, anew if it is answered. Yields and raises as `say`."""
        turns = self.turns if self.turns and self.turns[-1].role == "user" else self.turns[:-1]
        if not turns:
            raise ConversationError("nothing was said yet that could be answered")
        return self._answered(turns, settings, ending)

    def edit(self, number: int, text: str, settings: Settings, ending: Ending | None = None) -> Iterator[Step]:
        """Say something else in a turn of the user, `turns[number]`; what came after it is gone. Yields as `say`."""
        if not 0 <= number < len(self.turns) or self.turns[number].role != "user":
            raise ConversationError(f"turn {number} is none of the user's")
        if not isinstance(text, str):
            raise PromptError("what is said must be a text")
        return self._answered([*self.turns[:number], Turn("user", text)], settings, ending)

    def go_on(
        self,
        settings: Settings,
        ending: Ending | None = None,
        told: Sequence[int] | None = None,
        forced: Sequence[int | None] = (),
    ) -> Iterator[Step]:
        """Go on with the last answer, as if it had not been cut. Yields and raises as `say`.

        With the settings with which it was begun it becomes what it would have been.

        Parameters
        ----------
        settings, ending
            As for `say`.
        told
            Another way: after these tokens of an answer, in the place of all that was said. May be empty. The length is
            then that of the whole answer.
        forced
            Tokens to take in the place of the next ones sampled, None where the sampled one is right. Each uses up its
            random number.
        """
        if not self.turns or self.turns[-1].role == "user":
            raise ConversationError("there is no answer to go on with")
        answer = replace(self.turns[-1])
        if told is not None:
            if not self._tokenizer.stop_ids.isdisjoint(check_forced(told, self._tokenizer)):
                raise PromptError("nothing can be said after the token that ends the answer")
            answer = Turn("assistant", self._tokenizer.decode(told), tokens=tuple(told))
            if ending and ending.length:
                ending = replace(ending, length=max(1, ending.length - len(told)))
        if answer.end == "end":
            raise ConversationError("the answer has come to its end: there is nothing to go on with")
        if answer.end == "stop":
            answer.tokens = ()  # they say more than its text
        return self._answered(self.turns[:-1], settings, ending, answer, forced)

    def undo(self) -> str:
        """Take the last turn of the user back, and its answer; return what it said."""
        begins = self._begins(self.turns)
        if not begins:
            raise ConversationError("there is nothing to undo")
        text = self.turns[begins[-1]].text
        kept = self.turns[: begins[-1]]
        self.turns, self.dropped = kept, self._dropped_of(kept)
        return text

    def _answered(
        self,
        turns: list[Turn],
        settings: Settings,
        ending: Ending | None,
        answer: Turn | None = None,
        forced: Sequence[int | None] = (),
    ) -> Iterator[Step]:
        """The steps of an answer to these turns, which become the conversation's."""
        check_forced([token for token in forced if token is not None], self._tokenizer)
        answer = answer or Turn("assistant", "")
        ending = ending or Ending()
        if ending.shift:
            raise SettingsError("shift", "is for stories: of a conversation whole turns go when the context is full")
        settings.check(len(self._tokenizer))
        context = self._session.model.context
        room = min(ending.length or context // ROOM, context // ROOM)
        tokens, dropped = self._fitting(turns, answer, room)
        limit = len(tokens) + ending.length - 1 if ending.length else None  # the last one is told, but not computed
        sampler = ending.sampler(settings, self._tokenizer.stop_ids)
        sampler.skip(len(answer.tokens))
        return self._steps(tokens, turns, answer, sampler, replace(ending, length=limit), dropped, forced)

    def _steps(
        self,
        tokens: list[int],
        turns: list[Turn],
        answer: Turn,
        sampler: Sampler,
        ending: Ending,
        dropped: int,
        forced: Sequence[int | None],
    ) -> Iterator[Step]:
        news = dropped if dropped > self._dropped_of(turns) else 0
        for part in self._session.read(tokens):
            yield Step(part[-1], "", from_prompt=True, dropped=news)
            news = 0
        if answer.tokens:
            decoder = self._tokenizer.decoder()
            texts = [decoder.push(token) for token in tokens]
            answer.text = "".join(texts[-len(answer.tokens) :])  # but for half a character at its end
        answer.end = None
        turns = [*turns, answer]
        told = answer.tokens
        for step in go_on(self._session, self._tokenizer, sampler, ending, forced, begun=answer.text, told=told):
            self.turns, self.dropped = turns, dropped
            answer.text += step.text
            answer.end = step.end
            answer.tokens += (step.token,)
            yield step

    # ---- Tokens ------------------------------------------------------------------------------------------------------

    def tokens(self) -> list[int]:
        """Return the tokens of what the model sees of the conversation, up to where the next answer begins."""
        return self._scribe.encoded(self._written(self.turns[self.dropped :]))

    def count(self) -> int:
        """Return how many tokens the whole conversation has, or at the least has, if it is too long for the context."""
        texts = (self._system or "", *(turn.text for turn in self.turns))
        fewest = sum(map(self._tokenizer.fewest_tokens, texts))
        return fewest if fewest > self._session.model.context else len(self._scribe.encoded(self._written(self.turns)))

    def _written(self, turns: Sequence[Turn]) -> str:
        """These turns as the template writes them, up to where an answer begins."""
        return self._scribe.written(turns, self._system)

    def _fitting(self, turns: Sequence[Turn], answer: Turn, room: int) -> tuple[list[int], int]:
        """The tokens of as many of the last turns as leave room for an answer, and how many turns have to go for that.

        If turns have to go, half of the context is emptied: or else the next turn would have the same happen again,
        and each time almost everything would have to be computed anew.
        """
        context, dropped = self._session.model.context, self._dropped_of(turns)

        def tokens_from(first: int) -> list[int]:
            written = self._written(turns[first:])
            if answer.tokens:
                return [*self._scribe.encoded(written), *answer.tokens]
            return self._scribe.encoded(written + self._scribe.disguised(answer.text))

        def fewest_from(first: int) -> int:
            texts = (self._system or "", *(turn.text for turn in turns[first:]), answer.text)
            return sum(map(self._tokenizer.fewest_tokens, texts))

        later = [begin for begin in self._begins(turns) if begin > dropped]
        if fewest_from(dropped) < context:  # or else it is not even written down: that takes far longer
            tokens = tokens_from(dropped)
            if len(tokens) + room <= context:
                return tokens, dropped
        enough = context - max(room, context // 2)
        place = bisect_left(
            later, True, key=lambda first: fewest_from(first) <= enough and len(tokens_from(first)) <= enough
        )
        if later:
            dropped = later[min(place, len(later) - 1)]
        fewest = fewest_from(dropped)
        tokens = tokens_from(dropped) if fewest < context else []
        if answer.text and not 0 < len(tokens) < context:
            raise PromptError(f"the answer has filled the context of {context} tokens: it cannot go on")
        if not 0 < len(tokens) < context:
            raise PromptError(
                f"this needs {len(tokens) or f'at least {fewest}'} tokens, the system prompt and the last turn alone, "
                f"but the model's context is {context}: shorten it"
            )
        return tokens, dropped

    @staticmethod
    def _begins(turns: Sequence[Turn]) -> list[int]:
        """Where the user speaks."""
        return [number for number, turn in enumerate(turns) if turn.role == "user"]

    def _dropped_of(self, turns: Sequence[Turn]) -> int:
        """How many turns the model no longer sees, if these are the conversation's: none where one went back so far."""
        return self.dropped if len(turns) > self.dropped else 0

    # ---- Messages ----------------------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[dict[str, str]]:
        """All of it in the form that others exchange, too: ``{"role", "content"}``, the system prompt first."""
        system = [] if self._system is None else [_message("system", self._system)]
        return system + [_message(turn.role, turn.text) for turn in self.turns]

    def load(self, messages: Sequence[Message]) -> None:
        """Go on from these messages. Raises ConversationError, and changes nothing, unless they are a conversation."""
        system, turns = read_messages(messages)
        self.system = system
        self.turns, self.dropped = turns, 0


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": well_formed(text)}


def read_messages(messages: Any) -> tuple[str | None, list[Turn]]:
    """Return the system prompt and the turns of messages from elsewhere; ConversationError unless they are such."""
    if not isinstance(messages, (list, tuple)):
        raise ConversationError("a conversation is a list of messages")
    system: str | None = None
    turns: list[Turn] = []
    for number, message in enumerate(messages, 1):
        role, text = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
        if not isinstance(role, str) or not isinstance(text, str):
            raise ConversationError(f'message {number} must be {{"role": text, "content": text}}')
        expected = "user" if len(turns) % 2 == 0 else "assistant"
        if role == "system" and number == 1:
            system = text
        elif role == expected:
            turns.append(Turn("user" if role == "user" else "assistant", text))
        else:
            raise ConversationError(f"message {number} is by {role!r}, but must be by {expected!r}")
    return system, turns
