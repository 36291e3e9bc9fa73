"""Live Python: code that picks the tokens in the sampler's place, and may be changed between two of them.

The code is a visitor's. It defines a function ``choose(logits)``, which is called before each token and returns the
token's number; what it can ask of `logits`, `LiveLogits` says. What goes wrong in it becomes a `CodeError` with its
line, and neither the model's logits nor the random numbers are left changed.

What such code can reach: it runs in the page's worker, with all that Python and JavaScript bring along, and beside the
driver. It sees every text that this worker goes on with from then on, and the model; it may change both Python's and
JavaScript's side of the worker, and send the page whatever it likes.

What it cannot: before the first such code runs, the worker gives away all that leads out of it (web/seal.js): requests
to any server, the page's own included; what is kept on this machine, conversations and models; and the means to get a
fresh worker. There is no file that it could read but Python's own, and one that the visitor opens goes to a worker in
which no such code has run, as does the self-test. Of what it sends the page takes only what has the form of a message
(web/distrust.js), and shows that as text. What it has broken, or made hang, ends with the worker, which the page starts
anew. Memory and the processor's time it shares with the page: at the worst the browser ends the tab, and what is kept
stays; a reload does not run the code again.
"""

from __future__ import annotations
import __future__

import builtins
import io
import math
import traceback
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import Any, TypeVar, cast

from fabella.engine import Logits
from fabella.errors import CodeError, short_text
from fabella.page import LiveSampler
from fabella.sampler import SMALLEST_TEMPERATURE, Candidate, Change, Sampler, Settings
from fabella.session import PREFILL_TOKENS, Session
from fabella.tokenizer import Tokenizer
from fabella.watchdog import TookTooLong, Watchdog

T = TypeVar("T")

NAME = "<your code>"
LONGEST_SOURCE = 100_000  # characters
LIMIT = 0.4  # seconds that one token's choice may take; stopping the code takes a moment more
OFTEN = 8  # that the text may be computed anew for one token
DEEP = 20  # calls within each other that look like a recursion
PRINTED = 4000  # characters that are kept until the page takes them


class Console(io.TextIOBase):
    """Where print() goes: keeps the first `PRINTED` characters, and counts the others."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = PRINTED
        self._more = 0

    def write(self, text: str) -> int:
        """Keep a text, as far as there is room."""
        shown = text[: self._room]
        if shown:
            self._parts.append(shown)
        self._room -= len(shown)
        self._more += len(text) - len(shown)
        return len(text)

    def take(self) -> str:
        """Return what is kept, and begin anew."""
        text = "".join(self._parts) + (f"\n… and {self._more:,} characters more\n" if self._more else "")
        self._parts, self._room, self._more = [], PRINTED, 0
        return text


class LiveLogits:
    """What `choose` is given: how likely the model holds each token to be the next, and what there is so far.

    A token is a number; `decode` says its text. A candidate is a tuple (token, logit, probability).

    Attributes
    ----------
    vocab_size
        How many tokens there are: 0 to vocab_size - 1.
    settings
        As the sliders stand: settings.temperature, top_k, top_p, min_p, repetition_penalty, ...
    coin
        This token's random number, from 0 to just below 1: the same seed gives the same ones.
    text
        All of the text so far.
    prompt, said
        Its two parts: what was given, and what has been chosen since.
    tokens
        The same as tokens.
    ends
        The tokens that end a text.
    memory
        A dict of your own for what you want to know at the next token. It is empty when a text begins.

    Methods
    -------
    shortlist(k)
        The k likeliest tokens as (token, logit), the likeliest first.
    candidates(k, temperature=1)
        The same as (token, logit, probability); the probabilities of all tokens add up to 1.
    probability(token)
        That of any one token, at temperature 1.
    array()
        All logits, by token: a copy, array.array("f").
    decode(token)
        The text that this token would add; "" for one that ends the text, or for the first part of a character.
    encode(text)
        The tokens of a text.
    draw(temperature, coin)
        The token at which the running sum of probabilities exceeds the coin, in the order of tokens.
    mean(temperature)
        The mean of the logits, each with its token's probability.
    changed(tokens, change)
        ``with logits.changed([5, 7], change):`` these logits, but for some tokens: `change` is given the list of their
        logits and returns another. Afterwards they are as before.
    without_prompt(tokens)
        How likely the same model would hold these tokens if it had not read the prompt, but only what has been said
        since: the natural logarithms of their probabilities. The whole text is computed anew for that.
    """

    def __init__(self, logits: Logits, settings: Settings, told: Told, session: Session) -> None:
        self.vocab_size = logits.vocab_size
        self.settings = settings
        self.memory = told.memory
        self.tokens = session.tokens[:]
        self.ends = told.tokenizer.stop_ids
        self._logits = logits
        self._told = told
        self._session = session
        self._changed: _Changed | None = None
        self._alone = 0

    @property
    def coin(self) -> float:
        """The random number for this token."""
        return self._told.coin()

    @property
    def text(self) -> str:
        """The whole text."""
        return self._told.prompt + self._told.said

    @property
    def prompt(self) -> str:
        """What was given."""
        return self._told.prompt

    @property
    def said(self) -> str:
        """What has been chosen."""
        return self._told.said

    def shortlist(self, k: int) -> list[tuple[int, float]]:
        """The k likeliest tokens and their logits."""
        return self._logits.shortlist(_count(k))

    def candidates(self, k: int, temperature: float = 1.0) -> list[Candidate]:
        """The k likeliest tokens, their logits and probabilities."""
        return self._logits.candidates(_count(k), _heat(temperature))

    def probability(self, token: int) -> float:
        """A token's probability."""
        exp: Callable[[float], float] = cast(Any, self._session.model).host.function("exponential")
        return exp(self._logits.log_probability(self._number(token)))  # the same bits on every machine

    def array(self) -> array[float]:
        """All logits."""
        return self._logits.to_array()

    def decode(self, token: int) -> str:
        """What the token would add."""
        return "" if self._number(token) in self.ends else self._told.peek(token)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self._told.tokenizer.encode(text, bos=False)

    def draw(self, temperature: float, coin: float) -> int:
        """A token by chance."""
        return self._logits.draw(_heat(temperature), coin)

    def mean(self, temperature: float) -> float:
        """The mean logit."""
        return self._logits.mean(_heat(temperature))

    def changed(self, tokens: Sequence[int], change: Change) -> _Changed:
        """Other logits for a while."""
        return _Changed(self, [self._number(token) for token in tokens], change)

    def without_prompt(self, tokens: Sequence[int]) -> list[float]:
        """What the model would say that has only heard itself."""
        if self._changed:
            raise ValueError("without_prompt() cannot be asked while logits are changed")
        self._alone += 1
        if self._alone > OFTEN:
            raise ValueError(f"without_prompt() can be asked {OFTEN} times for a token: of many tokens at once")
        wanted = [self._number(token) for token in tokens]
        return self._told.alone(self._session, wanted)

    def _number(self, token: int) -> int:
        """Raise ValueError unless it is a token."""
        if type(token) is not int or not 0 <= token < self.vocab_size:
            raise ValueError(f"{_shown(token)} is no token: tokens are the numbers 0 to {self.vocab_size - 1}")
        return token

    def restore(self) -> None:
        """The logits as the model gave them, whatever the code has left open."""
        if self._changed:
            self._changed.__exit__(None, None, None)


class _Changed:
    """Some logits changed, one at a time. No generator, which other code could leave half done."""

    def __init__(self, live: LiveLogits, tokens: list[int], change: Change) -> None:
        self._live, self._tokens, self._change = live, tokens, change

    def __enter__(self) -> LiveLogits:
        live = self._live
        if live._changed:
            raise ValueError("logits can be changed by one “with” at a time")
        self._context = live._logits.changed(self._tokens, self._checked)
        self._context.__enter__()
        live._changed = self
        return live

    def _checked(self, before: list[float]) -> list[float]:
        after = [float(logit) for logit in self._change(before)]
        if len(after) != len(before):
            raise ValueError(f"the change of {len(before)} logits has made {len(after)} of them")
        return after

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live._changed is self:
            self._live._changed = None
            self._context.__exit__(None, None, None)


class Told:
    """A text so far, as the code sees it, from one token to the next.

    Parameters
    ----------
    session, tokenizer
        Whose tokens.
    sampler
        Whose random numbers.
    before
        How many of the session's tokens were chosen before, and not given.

    Attributes
    ----------
    memory : dict
        The code's own.
    computes : function
        Makes a context in which what the model computes does not count as the code's time.
    begins : function
        Called whenever a part of that is done.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer, sampler: Sampler, before: int) -> None:
        self.tokenizer = tokenizer
        self.memory: dict[Any, Any] = {}
        self.computes: Callable[[], AbstractContextManager[None]] = nullcontext
        self.begins: Callable[[], object] = lambda: None
        self._sampler = sampler
        self._decoder = tokenizer.decoder()
        self._given = len(session.tokens) - before
        self._seen = 0
        self._coin: float | None = None
        self.prompt = self.said = ""

    def follow(self, tokens: Sequence[int]) -> None:
        """Read the tokens that are new, before the next one is chosen."""
        for number in range(self._seen, len(tokens)):
            text = self._decoder.push(tokens[number])
            if number < self._given:
                self.prompt += text
            else:
                self.said += text
        self._seen = len(tokens)
        self._coin = None

    def coin(self) -> float:
        """The token's random number, which is drawn when it is asked for first."""
        if self._coin is None:
            self._coin = self._sampler.random.coin()
        return self._coin

    def peek(self, token: int) -> str:
        """What a token would add."""
        return self._decoder.peek(token)

    def alone(self, session: Session, tokens: Sequence[int]) -> list[float]:
        """The log-probabilities of tokens after what was chosen, alone. The model afterwards is as before."""
        model = session.model
        own = [*(self.tokenizer.encode("") or [self.tokenizer.bos_id]), *session.tokens[self._given :]]
        with self.computes():
            try:
                model.rewind(0)
                logits = cast(Logits, self._read(session, own))
                return [logits.log_probability(token) for token in tokens]
            finally:
                model.rewind(0)
                self._read(session, session.tokens)

    def _read(self, session: Session, tokens: Sequence[int]) -> Any:
        """Have the model compute tokens that are none of the session's doing; return the logits after them."""
        for start in range(0, len(tokens), PREFILL_TOKENS):
            logits = session.model.prefill(tokens[start : start + PREFILL_TOKENS])
            self.begins()  # it may take its time, but does not hang
        return logits


class Code:
    """A visitor's code, ready to pick tokens.

    Parameters
    ----------
    source
        Python, with a function ``choose(logits)``.
    session, tokenizer
        For which it picks.
    begins
        Called before the code is, if it may be the first time for a text: from then on silence may mean that it hangs.

    Attributes
    ----------
    console : Console
        What it prints.

    Raises
    ------
    CodeError
        If it is no Python, goes wrong at once, or has no such function.
    """

    def __init__(
        self, source: str, session: Session, tokenizer: Tokenizer, begins: Callable[[], object] = lambda: None
    ) -> None:
        self.console = Console()
        self._lines = source.splitlines()
        self._session, self._tokenizer, self._begins = session, tokenizer, begins
        if len(source) > LONGEST_SOURCE:
            raise CodeError(f"this code has {len(source):,} characters; {LONGEST_SOURCE:,} are the most")
        self._following: Told | None = None
        self._dog = Watchdog()
        try:
            code = self._run(compile, source, NAME, "exec", __future__.annotations.compiler_flag, True)
            names: dict[str, Any] = {"__builtins__": builtins, "__name__": "__live__"}
            begins()
            self._run(exec, code, names)
            choose = names.get("choose")
            if not callable(choose):
                raise CodeError("there is no function “choose(logits)”: it is called before each token")
            self._choose: Callable[[LiveLogits], object] = choose
        except CodeError as error:
            error.printed = self.console.take()
            self.close()
            raise

    def close(self) -> None:
        """Let go of it: others may be watched."""
        self._dog.close()

    def choose(self, sampler: LiveSampler, logits: Any) -> int:
        """Return the next token.

        Raises
        ------
        CodeError
            If the code goes wrong, takes too long, or returns no token. The sampler and the logits are as before.
        """
        told = sampler.told
        if told is None:
            told = sampler.told = Told(self._session, self._tokenizer, sampler, sampler.picked)
        if told is not self._following:
            self._following = told
            self._begins()
        told.follow(self._session.tokens)
        told.computes, told.begins = self._computing, self._begins
        live = LiveLogits(logits, sampler.settings, told, self._session)
        state = sampler.random.state
        try:
            token = self._run(self._picked, live)
            if sampler.settings.temperature:
                told.coin()  # each token has one, as the sampler's have: whether or not the code asked
            return token
        except CodeError:
            sampler.random.state = state
            raise
        finally:
            live.restore()

    def _picked(self, live: LiveLogits) -> int:
        token = self._choose(live)
        if type(token) is not int or not 0 <= token < live.vocab_size:
            raise CodeError(
                f"choose() has returned {_shown(token)}, but must return the number of a token, from 0 to "
                f"{live.vocab_size - 1}"
            )
        return token

    @contextmanager
    def _computing(self) -> Iterator[None]:
        self._begins()
        with self._dog.pause():
            yield
        self._begins()

    def _run(self, do: Callable[..., T], *arguments: Any) -> T:
        """Call something of the visitor's, watched, with its print() in the console."""
        with redirect_stdout(self.console), redirect_stderr(self.console):
            try:
                with self._dog.limit(LIMIT):
                    return do(*arguments)
            except BaseException as error:
                raise self._explained(error) from None

    def _explained(self, error: BaseException) -> CodeError:
        """What has gone wrong, and where."""
        if isinstance(error, CodeError):
            return error
        if isinstance(error, SyntaxError) and error.filename == NAME:
            return CodeError(f"{type(error).__name__}: {error.msg}", error.lineno)
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == NAME]
        line = lines[-1] if lines else None
        if isinstance(error, TookTooLong):
            what = "a function that calls itself" if len(lines) > DEEP else "a loop"
            return CodeError(f"stopped after {LIMIT} seconds: {what} without end?{self._quoted(line)}", line)
        try:
            with self._dog.limit(LIMIT):
                said = short_text(str(error), 300)  # which may be code of the visitor's, too
        except (Exception, TookTooLong):
            said = "it has no words of its own, or they took too long"
        return CodeError(f"{type(error).__name__}{said and ': '}{said}", line)

    def _quoted(self, line: int | None) -> str:
        """A line of the code, for a sentence."""
        return f" Line {line}: {short_text(self._lines[line - 1], 60)}" if line and line <= len(self._lines) else ""


def _shown(value: object) -> str:
    """A value that should have been a token, or a kind of value."""
    return f"{value}" if type(value) is int and abs(value) < 1 << 64 else short_text(repr(value), 60)


def _count(k: int) -> int:
    """Raise ValueError unless it is how many candidates there could be."""
    if type(k) is not int or k < 1:
        raise ValueError(f"k must be a whole number from 1 on, not {_shown(k)}")
    return k


def _heat(temperature: float) -> float:
    """Raise ValueError unless it is a temperature to divide by."""
    if not SMALLEST_TEMPERATURE <= temperature < math.inf:
        raise ValueError(f"a temperature must be at least {SMALLEST_TEMPERATURE:f}, not {temperature!r}")
    return float(temperature)
