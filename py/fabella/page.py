"""The page's side of the driver: what ``web/worker.js`` calls. Only numbers and JSON text cross to JavaScript."""

from __future__ import annotations

import json
import re
import time
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from fabella.engine import Engine
from fabella.errors import CodeError, EngineError, ModelFileError, PromptError, SettingsError, TemplateError
from fabella.generate import Ending, Step, generate
from fabella.gguf import MAGIC, read_gguf
from fabella.hosts import BrowserFile, BrowserHost
from fabella.modelfile import ModelFile
from fabella.sampler import LARGEST_SEED, Allowed, Logits, Sampler, Settings
from fabella.session import Session
from fabella.sources import BytesSource
from fabella.summary import summary

if TYPE_CHECKING:
    from fabella.adapter import Adapter
    from fabella.chat import Conversation
    from fabella.choice import Visible


def describe(blocks: Any, tokenizer: Any = None) -> str:
    """Say what a model file is before its weights are read.

    Parameters
    ----------
    blocks, tokenizer
        As for `Page`; of all that a ``Blocks`` has they need `size`, `copy(offset, target)` and `texts(offset, count)`,
        which may return null. Only the header is read, and what pads the weights.

    Returns
    -------
    The ``Card`` of ``web/messages.js``, but for its id, as JSON; or, of an adapter, ``{"adapter": AdapterCard}``.

    Raises
    ------
    FabellaError
        If this engine cannot run the file.
    """
    try:
        model, file = _open(blocks, tokenizer)
    except ModelFileError as error:
        if error.field != "general.type":  # which only an adapter has wrong
            raise
        from fabella.adapter import read_adapter
        from fabella.adapter import summary as adapter_summary

        return json.dumps({"adapter": adapter_summary(read_adapter(BrowserFile(blocks)))})
    return json.dumps(summary(model, file.size), allow_nan=False)


def _open(blocks: Any, tokenizer: Any) -> tuple[ModelFile, BrowserFile]:
    file = BrowserFile(blocks)
    if tokenizer is None and file.read(0, min(len(MAGIC), file.size)) == MAGIC:
        return read_gguf(file), file
    from fabella.models import read_model  # the page's own model is GGUF, and does not wait for it

    return read_model(file, None if tokenizer is None else BrowserFile(tokenizer), "the second file"), file


class Code(Protocol):
    """A visitor's code that picks tokens: `fabella.live.Code`, which is not here before somebody wants it."""

    console: Any

    def choose(self, sampler: LiveSampler, logits: Logits) -> int:
        """Return the next token, or raise CodeError."""

    def close(self) -> None:
        """Let go of it."""


class LiveSampler(Sampler):
    """A sampler in whose place a visitor's code picks, if there is some, from the next token on.

    Attributes
    ----------
    told
        What the code knows of the text; None before it has picked.
    picked : int
        How many of the tokens were picked, by whomever, and not given.
    """

    def __init__(self, settings: Settings, spared: Iterable[int], code: Callable[[], Code | None]) -> None:
        super().__init__(settings, spared)
        self._code = code
        self.told: Any = None
        self.picked = 0

    def sample(self, logits: Logits, said: Sequence[int] = (), allowed: Allowed | None = None) -> int:
        code = self._code()
        token = super().sample(logits, said, allowed) if code is None else code.choose(self, logits)
        if code and self.trace:
            _, logit, _ = cast("Visible", logits).candidate(token, 1)
            self.trace.steps.append(("code", [(token, logit, 1.0)]))
        self.picked += 1
        return token

    def skip(self, count: int) -> None:
        super().skip(count)
        self.picked += count


class Page:
    """One model in one worker, telling one story or giving one answer at a time.

    Parameters
    ----------
    exports
        The exports of the worker's ``run.wasm`` instance.
    blocks
        The model file, a ``Blocks`` of ``web/download.js``, which gives its bytes up as they are packed: GGUF, or
        llama2.c's .bin.
    tokenizer
        The same of tokenizer.bin, which goes with a .bin.

    Raises
    ------
    FabellaError
        If this engine cannot run the file, or memory runs out.
    """

    def __init__(self, exports: Any, blocks: Any, tokenizer: Any = None) -> None:
        self._model, file = _open(blocks, tokenizer)
        self._summary = summary(self._model, file.size)
        self._engine = Engine(BrowserHost(exports), self._model, file)
        self._session = Session(self._engine)
        self._adapted: tuple[Adapter, BytesSource] | None = None  # what the model has beside it
        self._is_adapted = False  # whether that is switched on
        self._conversation: Conversation | None = None
        self._counted: Conversation | None = None  # another: this one only counts
        self._steps: Iterator[Step] | None = None
        self._sampled = 0
        self._seconds = 0.0
        self._code: Code | None = None

    def info(self) -> str:
        """What `describe` says of the model's file, as JSON."""
        return json.dumps(self._summary, allow_nan=False)

    def lend(self) -> tuple[Session, ModelFile]:
        """The session and its model, for what else wants them: glass.py and selftest.py."""
        return self._session, self._model

    def forward_time(self, milliseconds: float) -> float:
        """Computes tokens for about this long, one at least, and returns a token's time in seconds.

        What the model has computed stays as it is. To be called between stories.
        """
        assert self._steps is None, "forward_time() during a story"
        count, started = 0, time.perf_counter()
        while True:
            self._session.repeat()
            count += 1
            seconds = time.perf_counter() - started
            if seconds >= milliseconds / 1000:
                return seconds / count

    def tell(self, request: str) -> None:
        """Starts a story, in the place of one that may still be going on.

        Parameters
        ----------
        request
            JSON: ``{"prompt", "settings": {"temperature", "top_p", "top_k", "seed", "length"}}``; the settings may have
            others of Settings, too, ``"stop"``, a list of texts, ``"loops"``, whether to stop when the story has begun
            to loop, and ``"look"``, whether each step says how its token was chosen. The seed is a string of decimal
            digits, because JavaScript's numbers cannot hold so many.

            With ``"told"``, the list of all tokens that were sampled so far after this prompt and with these settings,
            the story goes on as it would have; neither the prompt nor they are told again.

            Another way: ``"told"`` up to some place, and ``"forced"``, the tokens to take from there on in the place of
            those sampled, null where the sampled one is right, or ``"typed"``, a text to go on with. These are told.

            With ``"plainly": true`` the sampler picks, also where a visitor's code would: a story that is known is told
            again so that one can look.

        Raises
        ------
        FabellaError
            If a setting is out of range, the prompt is too long, or the story cannot go on.
        """
        asked = json.loads(request)
        prompt, told, forced = _prompt(asked), _tokens(asked, "told"), self._forced(asked)
        settings, ending = self._settings(asked)
        tokenizer = self._model.tokenizer
        self._begin(generate(self._session, tokenizer, prompt, settings, ending=ending, told=told, forced=forced))

    def _forced(self, asked: dict[str, Any]) -> list[int | None]:
        """The tokens that a request wants to be taken in the place of those sampled."""
        typed = asked.get("typed", "")
        if not isinstance(typed, str):
            raise PromptError("what was typed must be a text")
        tokenizer, context = self._model.tokenizer, self._session.model.context
        if (fewest := tokenizer.fewest_tokens(typed)) > context:  # a novel is refused before it is encoded
            raise PromptError(f"what was typed is at least {fewest} tokens long, but the context is {context}")
        return _tokens(asked, "forced") + tokenizer.encode_on(typed)

    def say(self, request: str) -> None:
        """Starts an answer, in the place of what may still be going on.

        Parameters
        ----------
        request
            JSON: ``{"messages": [{"role", "content"}, …], "settings"}``: the whole conversation and, last, what is to
            be answered; or an answer, which is gone on with. Settings as those of a story, but that the length is the
            answer's. Another way from a place of an answer: ``"told"``, its tokens up to there, with ``"forced"`` or
            ``"typed"`` as of a story, and ``"plainly"``.

        Raises
        ------
        FabellaError
            If the model has no chat template, or the messages or settings are none.
        """
        asked = json.loads(request)
        if not self._conversation:
            self._conversation = self._new_conversation()
        settings, ending = self._settings(asked)
        messages = asked.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        if not (isinstance(last, dict) and isinstance(last.get("content"), str)):
            raise PromptError("there is no message to answer")
        if last.get("role") not in ("user", "assistant"):
            raise PromptError(f"a message by {last.get('role')!r} cannot be answered")
        conversation = self._conversation
        is_answer = last.get("role") == "assistant"
        before = messages if is_answer else messages[:-1]
        if conversation.messages != before:  # or else it goes on where it is
            conversation.load(before)
        if is_answer:
            told = _tokens(asked, "told") if "told" in asked else None
            self._begin(conversation.go_on(settings, ending, told, self._forced(asked)))
        else:
            self._begin(conversation.say(last["content"], settings, ending))

    def count(self, request: str) -> int:
        """How many tokens a text has; a story or an answer that is going on is not disturbed.

        Parameters
        ----------
        request
            JSON: ``{"prompt"}``: those of a story's beginning; or ``{"messages"}``: those of a conversation, up to
            where the next answer begins.

        Returns
        -------
        The number of tokens that would be read; of what is too long for the context, how many it has at the least.

        Raises
        ------
        FabellaError
            As `tell` and `say`.
        """
        asked = json.loads(request)
        if "messages" in asked:
            if not self._counted:
                self._counted = self._new_conversation()
            self._counted.load(asked["messages"])
            return self._counted.count()
        prompt, tokenizer = _prompt(asked), self._model.tokenizer
        fewest = tokenizer.fewest_tokens(prompt)
        return fewest if fewest > self._session.model.context else max(1, len(tokenizer.encode(prompt)))

    def strange(self, text: str) -> int:
        """How many characters of a text the model cannot have read often: those that its tokenizer spells in bytes."""
        return self._model.tokenizer.strange(text)

    def _new_conversation(self) -> Conversation:
        """One with this model. Raises TemplateError if it is not made for that."""
        if self._model.chat_template is None:  # and what chats need may not be here
            raise TemplateError("this model has no chat template: it tells stories")
        from fabella.chat import Conversation, template_of

        return Conversation(self._session, self._model.tokenizer, template_of(self._model))

    def _begin(self, steps: Iterator[Step]) -> None:
        self._steps = steps
        self._sampled = 0
        self._seconds = 0.0

    def advance(self, milliseconds: float) -> str:
        """Goes on for about this long, at least by one step; returns at once with the first sampled token.

        Returns
        -------
        JSON ``{"steps": [{"token", "text", "from_prompt"}, …], "end": null or the reason, "tokens", "seconds",
        "tokens_per_second"}``, where the last three are of the sampled tokens of the story so far. Time counts from
        the first of them, so that the rate is 0 until there are two. A step has ``"dropped"`` if it is not 0, and if
        one looks, ``"choice"``, base64 of what is kept of how its token was chosen (some 850 characters), and
        ``"probability"``, the token's own before the sampler.

        If a visitor's code picks the tokens there is ``"printed"``, what it has printed; and if it has gone wrong the
        reason is ``"code"``, and ``"problem"`` says what: ``{"message", "line"}``, where the line may be null.
        """
        assert self._steps is not None, "advance() without tell()"
        story, self._steps = self._steps, None
        steps: list[Step] = []
        began = now = time.perf_counter()
        deadline = now + milliseconds / 1000
        end: str | None = None
        code: dict[str, Any] = {}
        try:
            for step in story:
                now = time.perf_counter()
                steps.append(step)
                if self._sampled == 0:
                    began = now  # reading the prompt does not count
                    if not step.from_prompt:
                        break
                if step.end or now >= deadline:
                    break
            end = steps[-1].end
        except CodeError as error:  # the story can be gone on with
            end, code = "code", {"problem": _problem(error)}
        if not end:
            self._steps = story
        if self._code:
            code["printed"] = self._code.console.take()
        self._seconds += now - began
        self._sampled += sum(not step.from_prompt for step in steps)
        rate = (self._sampled - 1) / self._seconds if self._seconds > 0 else 0.0
        return json.dumps(
            {
                "steps": [_told(step) for step in steps],
                "end": end,
                "tokens": self._sampled,
                "seconds": self._seconds,
                "tokens_per_second": rate,
                **code,
            }
        )

    def adapt(self, blocks: Any) -> str:
        """Puts an adapter beside the model, in the place of one that may be there; the story going on is forgotten.

        Parameters
        ----------
        blocks
            The adapter's file, as for `describe`.

        Returns
        -------
        The ``AdapterCard`` of ``web/messages.js``, as JSON.

        Raises
        ------
        FabellaError
            If it is no adapter, or one for another model; then all is as it was.
        """
        from fabella.adapter import read_adapter, summary

        file = BrowserFile(blocks)
        source = BytesSource(file.read(0, file.size))  # a few megabytes; its matrices come in any order
        adapter = read_adapter(source)
        adapter.check_fits(self._model.config)
        self.stop()
        before, self._adapted = self._adapted, None
        try:
            self._engine.adapt(adapter, source)
            self._adapted, self._is_adapted = (adapter, source), True
        except (ModelFileError, EngineError):  # a number in it is none, or memory ran out
            if before:
                self._engine.adapt(*before)
                self._engine.use_adapter(self._is_adapted)
                self._adapted = before
            raise
        finally:
            self._session.forget()
        return json.dumps(summary(adapter))

    def use_adapter(self, on: bool) -> None:
        """Switches the adapter off, or on again; the story going on is forgotten."""
        self.stop()
        self._engine.use_adapter(on)
        self._is_adapted = on
        self._session.forget()

    def use_code(self, make: Callable[..., Code], source: str, begins: Any) -> str:
        """Has a visitor's code pick the tokens, from the next one on, also of a story begun.

        Parameters
        ----------
        make
            `fabella.live.Code`.
        source, begins
            As for that.

        Returns
        -------
        JSON ``{"printed", "problem"}``, the latter null or as `advance` has it: then all is as it was.
        """
        try:
            code = make(source, self._session, self._model.tokenizer, begins)
        except CodeError as error:
            return json.dumps({"printed": error.printed, "problem": _problem(error)})
        if self._code:
            self._code.close()
        self._code = code
        return json.dumps({"printed": code.console.take(), "problem": None})

    def stop(self) -> None:
        """Forgets the story that is going on."""
        self._steps = None

    def _settings(self, asked: dict[str, Any]) -> tuple[Settings, Ending]:
        """The settings of a request, and when it ends. Raises SettingsError."""
        settings, ending = settings_of(asked.get("settings", {}))
        if asked.get("plainly") is True:
            return settings, ending
        return settings, replace(ending, sampler=partial(LiveSampler, code=lambda: self._code))


def _problem(error: CodeError) -> dict[str, Any]:
    return {"message": str(error), "line": error.line}


def _prompt(asked: dict[str, Any]) -> str:
    prompt = asked.get("prompt")
    if not isinstance(prompt, str):
        raise PromptError("there is no prompt; the least is an empty text")
    return prompt


def _told(step: Step) -> dict[str, Any]:
    told: dict[str, Any] = {"token": step.token, "text": step.text, "from_prompt": step.from_prompt}
    if step.choice:
        told |= {"choice": base64(step.choice.to_bytes()), "probability": step.choice.probability}
    return told | {"dropped": step.dropped} if step.dropped else told


def base64(data: bytes) -> str:
    """Return bytes as text."""
    return b2a_base64(data, newline=False).decode()


def _tokens(asked: dict[str, Any], name: str) -> list[Any]:
    tokens = asked.get(name, [])
    if not isinstance(tokens, list):
        raise PromptError(f"what was {name} must be a list of tokens")
    return tokens


NEEDED = ("temperature", "top_p", "top_k", "seed", "length")
ENDING = ("stop", "loops", "look")
FURTHER = tuple(field.name for field in fields(Settings) if field.name not in (*NEEDED, "logit_bias"))


def settings_of(asked: dict[str, Any]) -> tuple[Settings, Ending]:
    """Reads a request's settings, and when it ends. Raises SettingsError."""
    for name in NEEDED:
        if name not in asked:
            raise SettingsError(name, "is missing")
    known = (*NEEDED, *FURTHER, *ENDING)
    for name in asked:
        if name not in known:
            raise SettingsError(name, f"there is no such setting, only {', '.join(known)}")
    seed, length = asked["seed"], asked["length"]
    if not (isinstance(seed, str) and re.fullmatch("[1-9][0-9]{0,17}", seed)):
        raise SettingsError("seed", f"must be a whole number from 1 to {LARGEST_SEED}")
    if type(length) is not int:
        raise SettingsError("length", f"must be a whole number, not {length!r}")
    values = {name: asked[name] for name in asked if name not in ("seed", "length", *ENDING)}
    ending = Ending(length, asked.get("stop", ()), loops=asked.get("loops", False), look=asked.get("look", False))
    return Settings(**values, seed=int(seed)), ending
