"""Sessions: what is computed already is kept, and one may go on from anywhere; stories that are told in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabella.engine import Engine, Logits
from fabella.errors import EngineError
from fabella.generate import Ending, Step, generate, go_on
from fabella.modelfile import Config
from fabella.sampler import Sampler, Settings
from fabella.session import PREFILL_TOKENS, Session, common_length
from fabella.tokenizer import Tokenizer

from .random_models import load, write_random_model

CONFIG = Config(dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=400)
SETTINGS = Settings(temperature=0.9, top_p=0.95, seed=11)


class Counted:
    """An engine, and how many tokens it was asked to compute."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.context = engine.context
        self.computed = 0

    @property
    def position(self) -> int:
        return self.engine.position

    def prefill(self, tokens: Sequence[int]) -> Logits:
        self.computed += len(tokens)
        return self.engine.prefill(tokens)

    def forward(self, token: int) -> Logits:
        self.computed += 1
        return self.engine.forward(token)

    def rewind(self, position: int) -> None:
        self.engine.rewind(position)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Tokenizer]:
    engine, model = load(write_random_model(tmp_path_factory.mktemp("models") / "model.gguf", CONFIG))
    return engine, model.tokenizer


@pytest.fixture
def engine(loaded: tuple[Engine, Tokenizer]) -> Engine:
    return loaded[0]


@pytest.fixture
def tokenizer(loaded: tuple[Engine, Tokenizer]) -> Tokenizer:
    return loaded[1]


def bits(session: Session) -> bytes:
    logits = session.logits
    assert isinstance(logits, Logits)
    return logits.to_array().tobytes()


def read(session: Session, tokens: Sequence[int]) -> bytes:
    """The bits of the logits after these tokens."""
    parts = list(session.read(tokens))
    assert [token for part in parts for token in part] == list(tokens) == session.tokens
    return bits(session)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_length(a: list[int], b: list[int]) -> None:
    length = common_length(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]


@pytest.mark.parametrize(
    ("before", "after", "computed"),
    [
        ([], [1, 5, 6], 3),
        ([1, 5, 6], [1, 5, 6, 7, 8], 2),
        ([1, 5, 6], [1, 5, 6], 1),  # for the logits after the last
        ([1, 5, 6], [1, 5], 1),
        ([1, 5, 6], [1, 9, 6], 2),
        ([1, 5, 6], [2, 5, 6], 3),
        ([1] * 300, [1] * 299 + [2, 3], 2),
        ([1], [1, *range(3, 290)], 287),
    ],
)
def test_what_is_computed_is_kept(engine: Engine, before: list[int], after: list[int], computed: int) -> None:
    expected = read(Session(engine), after)
    counted = Counted(engine)
    session = Session(counted)
    if before:
        read(session, before)
    counted.computed = 0
    assert read(session, after) == expected
    assert counted.computed == computed


def test_many_tokens_are_read_in_parts(engine: Engine) -> None:
    session = Session(engine)
    tokens = [token % CONFIG.vocab_size for token in range(2 * PREFILL_TOKENS + 5)]
    assert [len(part) for part in session.read(tokens)] == [PREFILL_TOKENS, PREFILL_TOKENS, 5]
    tokens[-1] = 0
    assert [len(part) for part in session.read(tokens)] == [len(tokens) - 1, 1]


def test_a_session_without_logits_says_so(engine: Engine) -> None:
    session = Session(engine)
    with pytest.raises(EngineError, match="compute a token first"):
        _ = session.logits
    read(session, [1, 5, 6])
    session.rewind(2)
    with pytest.raises(EngineError, match="compute a token first"):
        _ = session.logits
    assert session.tokens == [1, 5]


@pytest.mark.parametrize("count", [0, 1, 7, CONFIG.seq_len])
def test_a_repeated_token_changes_nothing(engine: Engine, count: int) -> None:
    tokens = [(1 + 3 * number) % CONFIG.vocab_size for number in range(count)]
    session = Session(engine)
    if tokens:
        before = read(session, tokens)
    mark = session.mark
    for _ in range(3):
        session.repeat()
    session.check(mark)
    assert session.tokens == tokens
    if tokens:
        assert bits(session) == before
    if count < CONFIG.seq_len:
        session.forward(9)
        after = bits(session)
        assert read(Session(engine), [*tokens, 9]) == after


def test_a_second_story_is_the_same_as_in_a_session_of_its_own(engine: Engine, tokenizer: Tokenizer) -> None:
    asked = [("w1 w2", SETTINGS), ("w1 w2 w3", SETTINGS), ("w1 w2", replace(SETTINGS, seed=3))]
    alone = [list(generate(engine, tokenizer, *story, 60)) for story in asked]
    session = Session(engine)
    assert [list(generate(session, tokenizer, *story, 60)) for story in asked] == alone


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_going_on_from_any_token_tells_the_same_again(engine: Engine, tokenizer: Tokenizer, temperature: float) -> None:
    """With the random numbers' state of that place."""
    session, sampler = Session(engine), Sampler(replace(SETTINGS, temperature=temperature))
    read(session, tokenizer.encode("w1 w2"))
    begun, states, story = len(session.tokens), [], []
    states.append(sampler.random.state)
    for step in go_on(session, tokenizer, sampler, Ending(50)):
        story.append(step)
        states.append(sampler.random.state)
    tokens = list(session.tokens)
    for at in (0, 1, 17, len(story) - 1):
        read(session, tokens[: begun + at])
        sampler.random.state = states[at]
        assert list(go_on(session, tokenizer, sampler, Ending(50))) == story[at:]


def test_forced_tokens_are_taken_in_place_of_the_sampled_ones(engine: Engine, tokenizer: Tokenizer) -> None:
    def told(forced: list[int]) -> list[Step]:
        session = Session(engine)
        read(session, tokenizer.encode("w1 w2"))
        return list(go_on(session, tokenizer, Sampler(SETTINGS), Ending(50), forced))

    story = told([])
    tokens = [step.token for step in story]
    assert told(tokens[:10]) == story, "the random numbers after them are the same"
    other = (tokens[3] + 1 - 270) % 30 + 270
    branch = told([*tokens[:3], other])
    assert branch[:3] == story[:3]
    assert branch[3].token == other
    assert branch[4:] != story[4:]
    assert told([step.token for step in branch]) == branch
    assert told([tokenizer.eos_id])[-1].end == "end"


@pytest.mark.parametrize("change", [lambda s: s.rewind(2), lambda s: s.forward(1), lambda s: s.model.rewind(0)])
def test_a_story_ends_when_its_session_is_used_for_something_else(
    engine: Engine, tokenizer: Tokenizer, change: object
) -> None:
    assert callable(change)
    for steps in (1, 5):  # in the prompt, and after it
        session = Session(engine)
        story = generate(session, tokenizer, "w1 w2 w3", SETTINGS, 50)
        for _ in range(steps):
            next(story)
        change(session)
        with pytest.raises(EngineError, match="another story"):
            list(story)


# ---- Beyond the context ----


def test_a_story_goes_on_beyond_the_context(loaded: tuple[Engine, Tokenizer]) -> None:
    """The oldest half is forgotten, the token that begins every text is not."""
    engine, tokenizer = loaded
    settings = replace(SETTINGS, logit_bias={1: -100.0, 2: -100.0})  # it shall not end
    session = Session(engine)
    steps = list(generate(session, tokenizer, "w1 w2", settings, ending=Ending(900, shift=True)))
    told = [*tokenizer.encode("w1 w2"), *(step.token for step in steps if not step.from_prompt)]
    shifts = [number for number, step in enumerate(steps) if step.dropped]
    kept = CONFIG.seq_len // 2
    assert [steps[number].dropped for number in shifts] == [kept, 2 * kept, 3 * kept]
    assert steps[-1].end == "length"
    assert len(told) == 901
    assert session.tokens[0] == tokenizer.bos_id
    assert session.tokens[1:] == told[-len(session.tokens) : -1]
    # What follows is what follows these tokens in a session of their own.
    assert bits(session) == read(Session(engine), list(session.tokens))


def test_without_being_asked_to_a_story_ends_with_the_context(loaded: tuple[Engine, Tokenizer]) -> None:
    engine, tokenizer = loaded
    settings = replace(SETTINGS, logit_bias={1: -100.0, 2: -100.0})
    steps = list(generate(engine, tokenizer, "w1", settings, ending=Ending(900)))
    assert steps[-1].end == "context"
    assert not any(step.dropped for step in steps)


@pytest.mark.parametrize("context", [1, 2, 3, 4, 5])
def test_the_smallest_contexts(loaded: tuple[Engine, Tokenizer], context: int) -> None:
    engine, tokenizer = loaded
    counted = Counted(engine)
    counted.context = context
    steps = list(generate(Session(counted), tokenizer, "", SETTINGS, ending=Ending(30, shift=True)))
    assert steps[-1].end in ("length", "end") if context > 1 else steps[-1].end == "context"
