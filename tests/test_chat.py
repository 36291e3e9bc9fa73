"""Conversations: turns and tokens, what is computed anew, going back and going on, what goes when it is too much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabella.chat import Conversation, template_of
from fabella.constraint import Regex
from fabella.engine import Engine
from fabella.errors import ConstraintError, ConversationError, EngineError, PromptError, SettingsError, TemplateError
from fabella.generate import Ending, Step, generate
from fabella.modelfile import Config
from fabella.sampler import Settings
from fabella.session import PREFILL_TOKENS, Session, common_length
from fabella.template import ChatTemplate
from fabella.tokenizer import Tokenizer

from .random_models import load, write_random_model
from .test_session import Counted, bits, read

CONFIG = Config(dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=400)
NO_END = {1: -100.0, 2: -100.0}  # a random model would end now and then
SETTINGS = Settings(temperature=0.9, top_p=0.95, seed=11, logit_bias=NO_END)
GREEDY = Settings(temperature=0, logit_bias=NO_END)
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
# As Gemma's: there is no system role.
WITHOUT_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
# One that leaves a system prompt out and says nothing.
SILENT = TEMPLATE.replace("{% for message in messages %}", "{% for message in messages if message.role != 'system' %}")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Tokenizer, ChatTemplate]:
    engine, model = load(write_random_model(tmp_path_factory.mktemp("models") / "m.gguf", CONFIG, template=TEMPLATE))
    return engine, model.tokenizer, template_of(model)


class Chats:
    """Makes conversations with one model, whose computed tokens are counted."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.engine, self.tokenizer, self.template = engine, tokenizer, template
        self.counted = Counted(engine)

    def new(self, system: str | None = None, template: str | None = None, context: int = 0) -> Conversation:
        self.counted = Counted(self.engine)
        self.counted.context = context or self.engine.context
        controls = self.tokenizer.controls
        written = ChatTemplate(template, "<s>", "</s>", controls) if template else self.template
        return Conversation(Session(self.counted), self.tokenizer, written, system)


@pytest.fixture
def chats(loaded: tuple[Engine, Tokenizer, ChatTemplate]) -> Chats:
    return Chats(*loaded)


def told(steps: Iterator[Step]) -> str:
    return "".join(step.text for step in steps)


def talk(chat: Conversation, *texts: str, length: int = 9, settings: Settings = SETTINGS) -> list[str]:
    """Say these; return the answers."""
    return [told(chat.say(text, settings, Ending(length))) for text in texts]


def fresh_bits(engine: Engine, tokens: list[int]) -> bytes:
    """The bits of the logits after these tokens, computed from the first one on."""
    return read(Session(engine), tokens)


# ---- Turns and tokens ------------------------------------------------------------------------------------------------


def test_the_turns_are_those_of_the_template(chats: Chats) -> None:
    chat = chats.new("Be brief.")
    (first,) = talk(chat, " Hi ")
    chat.load([*chat.messages, {"role": "user", "content": "Bye"}])
    text = f"system: Be brief.|user: Hi|assistant: {first.strip()}|user: Bye|assistant:"
    tokens = chats.tokenizer.encode_parts([])
    for number, part in enumerate(text.split("|")):
        tokens += [1, *chats.tokenizer.encode_parts([part])] + ([2] if number < 4 else [])
    assert chat.tokens() == tokens


def test_an_answer_is_what_the_loop_goes_on_with(chats: Chats) -> None:
    chat = chats.new()
    steps = list(chat.say("w1 w2", SETTINGS, Ending(20)))
    given = [step for step in steps if step.from_prompt]
    assert [step.text for step in given] == [""]
    sampled = [step for step in steps if not step.from_prompt]
    assert len(sampled) == 20
    assert sampled[-1].end == "length"
    assert [turn.role for turn in chat.turns] == ["user", "assistant"]
    answer = chat.turns[1]
    assert (answer.text, answer.end) == (told(iter(steps)), "length")
    assert answer.tokens == tuple(step.token for step in sampled)


def test_long_turns_are_read_in_parts_so_that_one_can_stop(chats: Chats) -> None:
    chat = chats.new()
    steps = chat.say("w1 " * 50, SETTINGS)
    assert next(steps).from_prompt
    assert chats.counted.computed == PREFILL_TOKENS
    steps.close()  # type: ignore[attr-defined]
    assert not chat.turns, "they are the conversation's with the answer's first token"


@pytest.mark.parametrize("settings", [GREEDY, SETTINGS], ids=["greedy", "drawn"])
def test_each_turn_costs_what_is_new(chats: Chats, settings: Settings) -> None:
    """The tokens up to the first that is another stay computed, and the answer is that of a fresh run, to the bit."""
    chat = chats.new("Be brief.")
    computed: list[int] = []
    for number in range(5):
        before, counted = list(chat._session.tokens), chats.counted.computed
        steps = chat.say(f"w{number} w1", settings, Ending(8))
        assert next(step for step in steps if not step.from_prompt)
        tokens = list(chat._session.tokens)
        assert chats.counted.computed - counted == len(tokens) - common_length(before, tokens[:-1])
        list(steps)
        computed.append(chats.counted.computed - counted)
        answered = list(chat._session.tokens)
        assert bits(chat._session) == fresh_bits(chats.engine, answered)
        read(chat._session, answered)  # the fresh run took the engine
    assert max(computed[1:]) < len(tokens)


def test_one_conversation_has_one_course(chats: Chats) -> None:
    """However it came about: said at a stretch, with a story in between, or taken from its messages."""
    texts = ["w1", "w2 w3", "w4"]
    expected = talk(chats.new(), *texts)
    chat = chats.new()
    for number, text in enumerate(texts):
        list(generate(chat._session, chats.tokenizer, f"w{number} w9", SETTINGS, 20))
        assert talk(chat, text) == [expected[number]]
    messages = chat.messages
    for number in range(3):
        other = chats.new()
        other.load(messages[: 2 * number])
        assert talk(other, *texts[number:]) == expected[number:]


def test_a_story_in_between_is_over_when_the_conversation_goes_on(chats: Chats) -> None:
    chat = chats.new()
    story = generate(chat._session, chats.tokenizer, "w1", SETTINGS, 50)
    next(story)
    next(story)
    talk(chat, "w1")
    with pytest.raises(EngineError, match="another story"):
        list(story)


# ---- Going back and going on -----------------------------------------------------------------------------------------


def test_regenerate(chats: Chats) -> None:
    chat = chats.new()
    first, second = talk(chat, "w1", "w2")
    computed = chats.counted.computed
    assert told(chat.regenerate(SETTINGS, Ending(9))) == second
    assert chats.counted.computed - computed <= 9, "what came before the answer is computed"
    other = told(chat.regenerate(replace(SETTINGS, seed=5), Ending(9)))
    assert other != second
    assert [turn.text for turn in chat.turns] == ["w1", first, "w2", other]
    with pytest.raises(ConversationError, match="nothing was said"):
        chats.new().regenerate(SETTINGS)


def test_edit(chats: Chats) -> None:
    chat = chats.new("Be brief.")
    talk(chat, "w1", "w2", "w3")
    answer = told(chat.edit(2, "w7", SETTINGS, Ending(9)))
    assert [turn.text for turn in chat.turns][2:] == ["w7", answer]
    assert talk(chats.new("Be brief."), "w1", "w7")[1] == answer
    for number in (1, 3, 4, -1, 9):
        with pytest.raises(ConversationError, match="none of the user's"):
            chat.edit(number, "w7", SETTINGS)
    assert len(chat.turns) == 4


def test_undo(chats: Chats) -> None:
    chat = chats.new()
    expected = talk(chat, "w1", "w2", "w3")
    assert (chat.undo(), chat.undo()) == ("w3", "w2")
    assert len(chat.turns) == 2
    assert talk(chat, "w2", "w3") == expected[1:]
    for _ in range(3):
        chat.undo()
    with pytest.raises(ConversationError, match="nothing to undo"):
        chat.undo()


@pytest.mark.parametrize("settings", [GREEDY, SETTINGS], ids=["greedy", "drawn"])
@pytest.mark.parametrize("cuts", [(5, 15), (1, 1, 18), (19, 1)])
def test_an_answer_that_was_cut_goes_on_as_if_it_had_not_been(
    chats: Chats, settings: Settings, cuts: tuple[int, ...]
) -> None:
    chat, whole = chats.new(), chats.new()
    talk(whole, "w1", length=sum(cuts), settings=settings)
    talk(chat, "w1", length=cuts[0], settings=settings)
    for length in cuts[1:]:
        list(chat.go_on(settings, Ending(length)))
    assert chat.turns[1].tokens == whole.turns[1].tokens
    assert chat.turns[1].text == whole.turns[1].text


def test_an_answer_that_was_stopped_stays_and_can_go_on(chats: Chats) -> None:
    chat, whole = chats.new(), chats.new()
    talk(whole, "w1", length=12)
    steps = chat.say("w1", SETTINGS, Ending(12))
    for _ in range(6):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert len(chat.turns[1].tokens) == 5
    assert chat.turns[1].end is None
    list(chat.go_on(SETTINGS, Ending(7)))
    assert chat.turns[1].tokens == whole.turns[1].tokens
    assert talk(chat, "w2")


def test_an_answer_from_elsewhere_can_go_on(chats: Chats) -> None:
    chat = chats.new()
    chat.load([{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 <s> w3"}])
    more = told(chat.go_on(GREEDY, Ending(5)))
    assert chat.turns[1].text == f"w2 <s> w3{more}"
    assert chat._session.tokens.count(1) == 2, "the template's, not the answer's"


def test_stop_strings(chats: Chats) -> None:
    chat, whole = chats.new(), chats.new()
    (text,) = talk(whole, "w1", length=30)
    stop = text[10:13]
    assert told(chat.say("w1", SETTINGS, Ending(30, [stop]))) == text[: text.index(stop)] == chat.turns[1].text
    assert chat.turns[1].end == "stop"
    assert told(chat.go_on(SETTINGS, Ending(5)))


def test_an_answer_that_has_ended_does_not_go_on(chats: Chats) -> None:
    chat = chats.new()
    ends = Settings(temperature=0, logit_bias={2: 100.0})
    assert talk(chat, "w1", settings=ends) == [""]
    assert chat.turns[1].end == "end"
    with pytest.raises(ConversationError, match="come to its end"):
        chat.go_on(GREEDY)
    with pytest.raises(ConversationError, match="no answer to go on"):
        chats.new().go_on(GREEDY)


def test_a_turn_without_an_answer(chats: Chats) -> None:
    chat = chats.new()
    chat.load([{"role": "user", "content": "w1"}])
    with pytest.raises(ConversationError, match="has no answer yet"):
        chat.say("w2", SETTINGS)
    assert told(chat.regenerate(SETTINGS, Ending(9))) == talk(chats.new(), "w1")[0]


# ---- The context is full ---------------------------------------------------------------------------------------------


def test_whole_oldest_turns_go_and_the_system_prompt_stays(chats: Chats) -> None:
    chat = chats.new("w7 w8", context=240)
    dropped, said = [], []
    for number in range(20):
        text = f"w{number} w1 w2"
        steps = list(chat.say(text, SETTINGS, Ending(6)))
        said.append(text)
        told = [step.dropped for step in steps if step.dropped]
        dropped.append(bool(told))
        assert told in ([], [chat.dropped])
        assert len(chat._session.tokens) <= 240
        assert chat.dropped % 2 == 0
        seen = chats.tokenizer.decode(chat._session.tokens)
        assert "system: w7 w8" in seen
        for turn in range(0, len(chat.turns), 2):
            assert (f"user: {said[turn // 2]} assistant" in seen) == (turn >= chat.dropped), "whole turns"
    assert len(chat.turns) == 40, "nothing is lost"
    assert 2 <= sum(dropped) <= 5, "and not a few with every turn"


def test_what_is_dropped_stays_so_and_comes_back_with_an_undo(chats: Chats) -> None:
    chat = chats.new(context=100)
    talk(chat, *(f"w{number} w1 w2" for number in range(8)), length=6)
    dropped = chat.dropped
    assert dropped > 2
    before = chat.turns[-1].text
    assert told(chat.regenerate(SETTINGS, Ending(6))) == before
    assert chat.dropped == dropped
    while len(chat.turns) > dropped:
        chat.undo()
    assert chat.dropped == 0


def test_a_turn_that_fits_no_context_is_refused_and_nothing_is_lost(chats: Chats) -> None:
    chat = chats.new("w7", context=100)
    answers = talk(chat, "w1", "w2", length=6)
    for text in ("w1 " * 60, "x" * 1000, "w1 " * 1_000_000):
        with pytest.raises(PromptError, match="but the model's context is 100: shorten it"):
            chat.say(text, SETTINGS)
    with pytest.raises(PromptError, match="shorten it"):
        chat.edit(0, "w1 " * 60, SETTINGS)
    assert [turn.text for turn in chat.turns] == ["w1", answers[0], "w2", answers[1]]
    assert talk(chat, "w3")
    with pytest.raises(PromptError, match="shorten it"):
        chats.new("w1 " * 60, context=100).say("Hi", SETTINGS)


def test_a_conversation_from_elsewhere_may_be_far_too_long(chats: Chats) -> None:
    chat = chats.new("w7", context=100)
    long = [{"role": ("user", "assistant")[number % 2], "content": f"w{number} " * 20_000} for number in range(40)]
    chat.load(long)
    assert max(step.dropped for step in chat.say("w1", SETTINGS, Ending(5))) == 40
    chat.load([*long, *[{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]])
    assert max(step.dropped for step in chat.say("w1", SETTINGS, Ending(5))) == 40


def test_an_answer_fills_the_context_and_goes_on_without_the_oldest_turns(chats: Chats) -> None:
    chat = chats.new(context=100)
    talk(chat, *(f"w{number} w1" for number in range(3)), length=6)
    list(chat.say("w5", SETTINGS))
    assert chat.turns[-1].end == "context"
    before = chat.dropped, chat.turns[-1].text
    more = told(chat.go_on(SETTINGS, Ending(6)))
    assert chat.dropped > before[0]
    assert chat.turns[-1].text == before[1] + more


def test_an_answer_that_has_filled_the_context_alone_cannot_go_on(chats: Chats) -> None:
    chat = chats.new(context=100)
    list(chat.say("w5", SETTINGS))
    assert chat.turns[-1].end == "context"
    with pytest.raises(PromptError, match="has filled the context of 100 tokens: it cannot go on"):
        chat.go_on(SETTINGS)


def test_an_answer_without_a_length_has_a_quarter_of_the_context(chats: Chats) -> None:
    chat = chats.new(context=100)
    chat.load([{"role": "user", "content": "w1 " * 38}, {"role": "assistant", "content": "w2"}])
    assert max(step.dropped for step in chat.say("w3 " * 10, SETTINGS)) == 2


# ---- System prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [WITHOUT_SYSTEM, SILENT])
@pytest.mark.parametrize("system", ["", "user", "Hello", "w7"])
def test_any_system_prompt_is_seen(chats: Chats, template: str, system: str) -> None:
    chat = chats.new(system, template)
    talk(chat, "w1")
    written = f"{system}\n\nw1" if system else "w1"
    assert chats.tokenizer.decode(chat._session.tokens).startswith(f"user: {written} assistant:")


@pytest.mark.parametrize("template", [WITHOUT_SYSTEM, SILENT])
def test_where_a_template_has_no_system_role_the_first_turn_begins_with_it(chats: Chats, template: str) -> None:
    chat = chats.new("w7 w8", template, context=120)
    for number in range(9):
        talk(chat, f"w{number} w1 w2", length=6)
        seen = chats.tokenizer.decode(chat._session.tokens)
        assert seen.startswith(f"user: w7 w8\n\nw{chat.dropped // 2} w1 w2 assistant:")
    assert chat.dropped


def test_the_system_prompt_may_change(chats: Chats) -> None:
    chat = chats.new("w7")
    talk(chat, "w1")
    chat.system = "w8"
    answers = talk(chat, "w2")
    other = chats.new()
    other.load([{"role": "system", "content": "w8"}, *chat.messages[1:3]])
    assert talk(other, "w2") == answers
    chat.system = None
    assert chat.messages[0]["role"] == "user"
    with pytest.raises(PromptError, match="must be a text"):
        chat.system = 7  # type: ignore[assignment]


def test_an_empty_system_prompt_is_one(chats: Chats) -> None:
    chat = chats.new("")
    talk(chat, "w1")
    assert chats.tokenizer.decode(chat._session.tokens).startswith("system:")


# ---- What is none ----------------------------------------------------------------------------------------------------


def test_a_model_without_a_template(tmp_path: Path) -> None:
    _, model = load(write_random_model(tmp_path / "model.gguf", CONFIG))
    with pytest.raises(TemplateError, match="has no chat template: it is not made for conversations"):
        template_of(model)
    assert model.chat_template is None


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "is a list"),
        ({"role": "user"}, "is a list"),
        (["Hi"], "message 1 must be"),
        ([{"role": "user"}], "message 1 must be"),
        ([{"role": "user", "content": ["Hi"]}], "message 1 must be"),
        ([{"role": "assistant", "content": "Hi"}], "message 1 is by 'assistant', but must be by 'user'"),
        ([{"role": "user", "content": "Hi"}] * 2, "message 2 is by 'user', but must be by 'assistant'"),
        ([{"role": "user", "content": "Hi"}, {"role": "system", "content": "x"}], "message 2 is by 'system'"),
        ([{"role": "tool", "content": "Hi"}], "message 1 is by 'tool'"),
        ([{"role": "</s>", "content": "Hi"}], "message 1 is by '</s>'"),
    ],
)
def test_messages_that_are_no_conversation(chats: Chats, messages: Any, said: str) -> None:
    chat = chats.new("w7")
    talk(chat, "w1")
    before = chat.messages
    with pytest.raises(ConversationError, match=said):
        chat.load(messages)
    assert chat.messages == before


def test_an_error_on_the_way_leaves_the_conversation_as_it_was(chats: Chats) -> None:
    """Nobody's answer is lost by trying to have another, and none is begun that has no token."""
    chat = chats.new()
    talk(chat, "w1")
    before = chat.messages
    nothing = Ending(5, constraint=lambda text, added: False)
    with pytest.raises(SettingsError, match="there is no token 300"):
        chat.regenerate(replace(GREEDY, logit_bias={300: 1.0}))
    chat.regenerate(GREEDY)  # which nobody asks for a token
    for steps in (chat.regenerate(GREEDY, nothing), chat.say("w2", GREEDY, nothing), chat.go_on(GREEDY, nothing)):
        with pytest.raises(ConstraintError):
            list(steps)
        assert chat.messages == before


def test_constraints_and_stop_strings_go_on_where_the_answer_was_cut(chats: Chats) -> None:
    chat, whole = chats.new(), chats.new()
    digits = Regex("w?[0-9]{12}")
    list(whole.say("w1", SETTINGS, Ending(30, constraint=digits)))
    list(chat.say("w1", SETTINGS, Ending(4, constraint=digits)))
    list(chat.go_on(SETTINGS, Ending(26, constraint=digits)))
    assert chat.turns[1].text == whole.turns[1].text
    chat = chats.new()
    (text,) = talk(chats.new(), "w1", length=30)
    stop = text[8:16]
    for length in range(1, 12):
        list(chat.say("w1", SETTINGS, Ending(length, [stop])))
        list(chat.go_on(SETTINGS, Ending(40, [stop])))
        assert chat.turns[1].end == "stop"
        assert text.startswith(chat.turns[1].text)
        assert stop not in chat.turns[1].text
        chat.undo()


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda chat: chat.say(None, SETTINGS), PromptError),
        (lambda chat: chat.edit(0, None, SETTINGS), PromptError),
        (lambda chat: chat.say("w1", SETTINGS, Ending(shift=True)), SettingsError),
        (lambda chat: chat.say("w1", SETTINGS, Ending(-1)), SettingsError),
        (lambda chat: chat.say("w1", SETTINGS, Ending(True)), SettingsError),
        (lambda chat: chat.say("w1", SETTINGS, Ending(stop="a")), SettingsError),
        (lambda chat: chat.say("w1", SETTINGS, Ending(constraint=7)), SettingsError),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_asked(chats: Chats, ask: Any, error: type[Exception]) -> None:
    chat = chats.new()
    talk(chat, "w1")
    with pytest.raises(error):
        ask(chat)
    assert len(chat.turns) == 2


@given(text=st.text(st.characters(), max_size=30))
def test_any_text_can_be_said(loaded: tuple[Engine, Tokenizer, ChatTemplate], text: str) -> None:
    """Lone surrogates and all."""
    chat = Chats(*loaded).new(text)
    list(chat.say(text, GREEDY, Ending(2)))
    assert chat.turns[0].text == text
    assert chat._session.tokens.count(1) == 3
    assert [message["content"] for message in chat.messages[:2]] == [
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ] * 2
