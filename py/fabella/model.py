"""The door for programs: a model that tells, chats and measures. The same in CPython and wherever Pyodide runs.

An example::

    import fabella

    with fabella.load("SmolLM2-135M-Instruct.Q4_1.gguf") as model:
        chat = model.chat(system="You answer in one sentence.")
        for piece in chat.say("Why is the sky blue?", temperature=0, length=100):
            print(piece, end="", flush=True)
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from fabella.engine import Engine
from fabella.errors import PromptError
from fabella.generate import Constraint, Ending, Step, generate
from fabella.hosts import new_host
from fabella.modelfile import ModelFile
from fabella.models import File, open_model, put_adapter
from fabella.sampler import Settings, random_seed
from fabella.session import Session, newest_half
from fabella.sources import Closing
from fabella.tokenizer import Tokenizer, well_formed

if TYPE_CHECKING:
    from fabella.chat import Conversation, Turn
    from fabella.look import View


class Options(TypedDict, total=False):
    """When a text ends, what may be in it, and how its tokens are picked.

    `length` is how many tokens there may be; without it, as many as the context holds. `stop` is a text, or a list of
    texts, before the first of which it ends, `constraint` says what may come (:mod:`fabella.constraint`), `loops`
    whether it ends when it has begun to loop (:mod:`fabella.loops`). The others are those of
    :class:`fabella.sampler.Settings`, with the same defaults; without a seed each text is another.
    """

    length: int | None
    stop: str | Sequence[str]
    constraint: Constraint | None
    loops: bool
    temperature: float
    top_p: float
    top_k: int
    seed: int
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    logit_bias: Mapping[int, float]


def load(model: File, tokenizer: File | None = None, adapter: File | None = None) -> Model:
    """Load a model.

    Parameters
    ----------
    model
        A GGUF file, or llama2.c's .bin: its path, its bytes, or an open file.
    tokenizer
        For a .bin its tokenizer.bin, in one of the same forms.
    adapter
        An adapter (LoRA) for the model, a GGUF file, in one of the same forms: see :meth:`Model.adapt`.

    Raises
    ------
    FabellaError
        If it is no model that we run; the message says why.
    EngineError
        If memory runs out.
    OSError
        If a file cannot be read.
    """
    with open_model(model, tokenizer, "the tokenizer") as (file, source):
        loaded = Model(file, Engine(new_host(), file, source))
    if adapter is not None:
        loaded.adapt(adapter)
    return loaded


class Model(Closing):
    """A loaded model. It does one thing at a time: who begins a story or an answer ends the one before.

    Parameters
    ----------
    file
        What its file says.
    engine
        The engine that has it loaded.

    Attributes
    ----------
    name : str
        What the model calls itself.
    context : int
        How many tokens it can see.
    tokenizer : Tokenizer
        Its own.
    """

    def __init__(self, file: ModelFile, engine: Engine) -> None:
        self.name = file.name
        self.context = engine.context
        self.tokenizer: Tokenizer = file.tokenizer
        self._file = file
        self._engine = engine
        self._session = Session(engine)

    def __repr__(self) -> str:
        return f"<fabella.Model {self.name!r}, {len(self.tokenizer)} tokens, context {self.context}>"

    def tell(
        self, prompt: str = "", *, shift: bool = False, look: bool = False, **options: Unpack[Options]
    ) -> Iterator[str]:
        """Tell a story; yield its text piece by piece, the prompt's first.

        Parameters
        ----------
        prompt
            How it begins.
        shift
            Whether to go on when the context is full, and forget the oldest half of it; without a length until the
            model ends the story.
        look
            Whether each piece is a single token's, and knows how that was chosen (:class:`fabella.look.Piece`); it may
            then be empty, where a token is but a part of a character.
        **options
            See `Options`; the length is that of the whole story.

        Raises
        ------
        PromptError, SettingsError
            At once, if the prompt is too long or an option is wrong.
        EngineError, ConstraintError
            On the way, if memory runs out, another story was begun, or the constraint lets nothing come.
        """
        settings, ending = _parts(options, shift, look)
        steps = generate(self._session, self.tokenizer, prompt, settings, ending=ending)
        if not look:
            return _pieces(steps)
        from fabella.look import Piece

        return (Piece(step, self.tokenizer) for step in steps if step.choice or step.text)

    def inside(self, text: str, top: int = 3) -> View:
        """Return what a text's last token is like inside the model.

        Parameters
        ----------
        text
            The text; the token that may have to stand before it comes of itself.
        top
            How many tokens are told of what each layer would say.

        Raises
        ------
        PromptError
            If it is too long, or no text.
        EngineError
            If memory runs out.
        """
        from fabella.look import View

        tokens = self._read_text(text)
        return View(tokens, self._session.inside(len(tokens) - 1, top), self.tokenizer)

    def chat(self, system: str | None = None) -> Chat:
        """Begin a conversation, with this system prompt or with what the model's template says.

        Raises
        ------
        TemplateError
            If the model has no chat template, or one that does not work.
        """
        from fabella.chat import Conversation, template_of

        return Chat(Conversation(self._session, self.tokenizer, template_of(self._file), system))

    def adapt(self, adapter: File) -> None:
        """Put an adapter (LoRA) beside the model, in the place of one that may be there: it then speaks in its voice.

        Parameters
        ----------
        adapter
            A GGUF file as llama.cpp and train.export write them: its path, its bytes, or an open file.

        Raises
        ------
        FabellaError
            If it is no adapter, or one for another model; the message says why. The model then has none, or the one
            that it had.
        EngineError, OSError
            As :func:`load`.
        """
        try:
            put_adapter(self._engine, adapter)
        finally:
            self._session.forget()

    def use_adapter(self, on: bool) -> None:
        """Switch the adapter off, or on again, at once: nothing is loaded anew."""
        self._engine.use_adapter(on)
        self._session.forget()

    def logits(self, text: str) -> array[float]:
        """Return the logits after a text, (vocab_size), float32. Raises PromptError if it is too long."""
        self._read_text(text)
        return self._engine.logits.to_array()

    def _read_text(self, text: str) -> list[int]:
        """Make a text's tokens the session's; return them."""
        tokens = self.tokenize(text) or [self.tokenizer.bos_id]
        if len(tokens) > self.context:
            raise PromptError(f"the text is {len(tokens)} tokens long, but the model's context is {self.context}")
        self._read(tokens)
        return tokens

    def tokenize(self, text: str) -> list[int]:
        """Return a text's tokens, with the one before it that the model wants. Raises PromptError if it is no text."""
        return self.tokenizer.encode(_checked(text))

    def detokenize(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens. Raises IndexError if the vocabulary has not got one."""
        return self.tokenizer.decode(tokens)

    def perplexity(self, text: str) -> float:
        """Return how much a text surprises the model, in bits per byte: the lower, the better it knows such texts.

        The text is told from the token on that begins every text; -log2 of the probability of each of its tokens is
        added up, and divided by its bytes. Of a text longer than the context each token is foretold from those before
        it, from half of the context at least. (train/evaluate.py measures the same, of each document's beginning.)

        Raises PromptError if there is no text.
        """
        tokens = self.tokenizer.encode(_checked(text), bos=False)
        size = len(well_formed(text).encode())
        if not size:
            raise PromptError("there is no text to measure")
        session, begin, nats = self._session, self.tokenizer.bos_id, 0.0
        self._read([begin])
        for token in tokens:
            if len(session.tokens) == self.context:
                self._read(newest_half(session.tokens, begin))
            nats -= self._engine.logits.log_probability(token)
            session.forward(token)
        return nats / math.log(2) / size

    def _read(self, tokens: Sequence[int]) -> None:
        """Make these tokens the session's, at a stretch."""
        for _ in self._session.read(tokens):
            pass

    def close(self) -> None:
        """Give its memory back; afterwards it computes nothing any more."""
        self._engine.close()


class Chat:
    """A conversation with a model. What each method raises is said in :class:`fabella.chat.Conversation`.

    Each answer comes piece by piece; whoever asks for no more pieces has stopped it, and it stays as it is. The options
    are `Options`; the length is that of the answer.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def say(self, text: str, **options: Unpack[Options]) -> Iterator[str]:
        """Say something; yield the answer."""
        return _pieces(self._conversation.say(text, *_parts(options)))

    def regenerate(self, **options: Unpack[Options]) -> Iterator[str]:
        """Have the last answer given anew."""
        return _pieces(self._conversation.regenerate(*_parts(options)))

    def edit(self, number: int, text: str, **options: Unpack[Options]) -> Iterator[str]:
        """Say something else in `turns[number]`, forget what came after it, and yield the answer."""
        return _pieces(self._conversation.edit(number, text, *_parts(options)))

    def go_on(self, **options: Unpack[Options]) -> Iterator[str]:
        """Go on with an answer that was cut; yield what is new."""
        return _pieces(self._conversation.go_on(*_parts(options)))

    def undo(self) -> str:
        """Take the last turn and its answer back; return what was said."""
        return self._conversation.undo()

    @property
    def turns(self) -> Sequence[Turn]:
        """What was said, by turns: each with its `role`, `text` and, of an answer, why it ended (`end`)."""
        return tuple(self._conversation.turns)

    @property
    def dropped(self) -> int:
        """How many of the first turns the model no longer sees, because the context is full."""
        return self._conversation.dropped

    @property
    def messages(self) -> list[dict[str, str]]:
        """All of it as others exchange it, ``{"role", "content"}``; may be set to go on from there."""
        return self._conversation.messages

    @messages.setter
    def messages(self, messages: Sequence[Mapping[str, str]]) -> None:
        self._conversation.load(messages)


def _parts(options: Options, shift: bool = False, look: bool = False) -> tuple[Settings, Ending]:
    sampling: dict[str, Any] = dict(options)
    length, constraint, stop = (sampling.pop(name, None) for name in ("length", "constraint", "stop"))
    stops = (stop,) if isinstance(stop, str) else () if stop is None else stop
    ending = Ending(length, stops, constraint, shift, sampling.pop("loops", False), look)
    return Settings(**sampling | {"seed": sampling.get("seed") or random_seed()}), ending


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise PromptError(f"must be a text, not {text!r}")
    return text


def _pieces(steps: Iterator[Step]) -> Iterator[str]:
    return (step.text for step in steps if step.text)
