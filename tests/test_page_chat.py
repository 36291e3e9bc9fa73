"""Conversations in the page's worker, asked message by message, in a real browser and without one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabella import page
from fabella.chat import Conversation, template_of
from fabella.errors import ConversationError, PromptError, SettingsError, TemplateError
from fabella.generate import Ending
from fabella.hosts import WasmtimeHost
from fabella.modelfile import Config
from fabella.sampler import Settings
from fabella.session import Session
from fabella.sources import BytesSource

from .conftest import Site, Visit
from .random_models import load, write_random_model

CONFIG = Config(dim=64, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, seq_len=300)
SETTINGS = {"temperature": 0.9, "top_p": 0.9, "top_k": 0, "seed": "7", "length": 12, "repetition_penalty": 1.1}

# What templates do, besides what those of the models in other tests do.
RICH = (
    "{%- macro said(text) -%}{{ text | trim | replace('\\u00a0', ' ') }}{%- endmacro -%}"
    "{%- set ns = namespace(count=0) -%}"
    "{%- if strftime_now('%Y') | int < 1970 or ({'a': [1, 2.5, none]} | tojson) != '{\"a\": [1, 2.5, null]}' -%}"
    "{{ raise_exception('no such day') }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- set ns.count = ns.count + 1 -%}"
    "<s>{{ message.role.title() | lower }}{{ ': ' if loop.first or ns.count > 1 }}{{ said(message['content']) }}</s>"
    "{%- endfor -%}"
    "{%- if messages | selectattr('role', 'equalto', 'tool') | list | length -%}{{ messages[::-1] }}{%- endif -%}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)

ASK = """async (message) => {
  const answer = new Promise((resolve) => notebook.worker.addEventListener("message", ({ data }) => {
    if (data.type === "error" || (data.type === "done" && data.id === message.id)) resolve(data);
  }));
  notebook.worker.postMessage(message);
  const last = await answer;
  const steps = notebook.received.filter(({ type, id }) => type === "steps" && id === message.id);
  return { ...last, steps: steps.flatMap(({ steps }) => steps) };
}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random.gguf", CONFIG, template=RICH)


@pytest.fixture(scope="module")
def site(built: Callable[[Path], Path], model: Path) -> Iterator[Site]:
    site = Site(built(model))
    yield site
    site.close()


def said(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    begin = [] if system is None else [{"role": "system", "content": system}]
    return begin + [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


@pytest.fixture
def conversation(model: Path) -> Conversation:
    """One under wasmtime, to compare with."""
    engine, file = load(model)
    return Conversation(Session(engine), file.tokenizer, template_of(file), "w7")


PLAIN = Settings(temperature=0.9, top_p=0.9, seed=7, repetition_penalty=1.1)


def test_a_conversation_in_the_page_is_that_under_wasmtime(
    visit: Visit, site: Site, conversation: Conversation
) -> None:
    """Token for token: turns, an answer gone on with, an earlier turn that is edited, and a story in between."""
    visit.open(site)
    assert [message["model"]["chats"] for message in visit.received("ready")] == [True]

    def ask(number: int, messages: list[dict[str, str]], **settings: Any) -> list[tuple[int, str]]:
        answer = visit.page.evaluate(
            ASK, {"type": "say", "id": number, "messages": messages, "settings": SETTINGS | settings}
        )
        assert answer["type"] == "done", answer
        return [(step["token"], step["text"]) for step in answer["steps"] if not step["from_prompt"]]

    def expected(steps: Any) -> list[tuple[int, str]]:
        return [(step.token, step.text) for step in steps if not step.from_prompt]

    for number, text in enumerate(("w1 w2", "w3", "w4 w5"), 1000):
        messages = [*conversation.messages, *said(text)]
        assert ask(number, messages) == expected(conversation.say(text, PLAIN, Ending(12)))
        if number == 1001:
            visit.page.get_by_role("radio", name="story").check()
            visit.tell("w1", length=30)
    if conversation.turns[-1].end != "end":
        messages = conversation.messages
        assert ask(1010, messages, length=5) == expected(conversation.go_on(PLAIN, Ending(5)))
    edited = [*conversation.messages[:3], *said("w9")]
    assert ask(1011, edited) == expected(conversation.edit(2, "w9", PLAIN, Ending(12)))


def test_it_converses_before_all_of_python_is_there(visit: Visit, site: Site, conversation: Conversation) -> None:
    """All that a conversation needs of the standard library is in the snapshot: the rest comes later, or never."""
    visit.page.route("**/python-stdlib-*", lambda route: None)
    visit.open(site)
    messages = [*conversation.messages, *said("w1 w2")]
    answer = visit.page.evaluate(ASK, {"type": "say", "id": 1000, "messages": messages, "settings": SETTINGS})
    assert answer["type"] == "done", answer
    steps = conversation.say("w1 w2", PLAIN, Ending(12))
    assert [step["token"] for step in answer["steps"] if not step["from_prompt"]] == [
        step.token for step in steps if not step.from_prompt
    ]


@pytest.mark.parametrize(
    ("messages", "settings", "words"),
    [
        (said("w1 " * 400), {}, "shorten it"),
        ([{"role": "tool", "content": "x"}, *said("w1")], {}, "message 1 is by 'tool'"),
        (said("w1"), {"top_p": 2}, "top_p"),
        ([], {}, "no message to answer"),
    ],
)
def test_what_cannot_be_said_is_refused_in_words(
    visit: Visit, site: Site, messages: Any, settings: dict[str, Any], words: str
) -> None:
    visit.open(site)
    question = {"type": "say", "id": 1000, "messages": messages, "settings": SETTINGS | settings}
    answer = visit.page.evaluate(ASK, question)
    assert answer["type"] == "error"
    assert words in answer["message"]
    assert visit.page.evaluate(ASK, question | {"id": 1001, "messages": said("w1"), "settings": SETTINGS})["steps"]


# ---- Without a browser -----------------------------------------------------------------------------------------------


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], page.Page]:
    """The page's side of the driver with a model file, under wasmtime."""
    monkeypatch.setattr(page, "BrowserHost", lambda _exports: WasmtimeHost())
    monkeypatch.setattr(page, "BrowserFile", BytesSource)
    return lambda path: page.Page(None, path.read_bytes())


def answered(opened: page.Page, messages: Any, **settings: Any) -> tuple[str, int]:
    """The answer, and how many turns the model has meanwhile ceased to see."""
    opened.say(json.dumps({"messages": messages, "settings": SETTINGS | settings}))
    text, dropped = "", 0
    while True:
        turn = json.loads(opened.advance(1000))
        text += "".join(step["text"] for step in turn["steps"])
        dropped = max([dropped, *(step.get("dropped", 0) for step in turn["steps"])])
        if turn["end"]:
            return text, dropped


def test_the_page_is_told_which_turns_the_model_no_longer_sees(
    open_page: Callable[[Path], page.Page], model: Path
) -> None:
    opened = open_page(model)
    messages, dropped = [], 0
    for number in range(12):
        messages += said(f"w{number} w1 w2 w3")
        text, more = answered(opened, messages)
        messages += [{"role": "assistant", "content": text}]
        dropped = more or dropped
    assert 0 < dropped < 24
    assert dropped % 2 == 0


def test_a_conversation_s_tokens_are_counted_while_an_answer_is_given(
    open_page: Callable[[Path], page.Page], model: Path, conversation: Conversation
) -> None:
    """As it is read before the answer; and the answer is what it would have been."""
    opened = open_page(model)
    messages = said("w1 w2", "w3", "w4 w5", system="w7")
    conversation.load(messages)
    expected = len(conversation.tokens())

    def count(messages: Any) -> int:
        return opened.count(json.dumps({"messages": messages}))

    text, _ = answered(opened, messages)
    opened.say(json.dumps({"messages": messages, "settings": SETTINGS}))
    so_far = ""
    while True:
        turn = json.loads(opened.advance(0))
        so_far += "".join(step["text"] for step in turn["steps"])
        assert count(messages) == expected
        assert count(said("w1")) < expected
        if turn["end"]:
            break
    assert so_far == text
    assert count(said("x" * 100_000)) > CONFIG.seq_len
    with pytest.raises(ConversationError):
        count("w1")


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"messages": None}, PromptError),
        ({"messages": ["w1"]}, PromptError),
        ({"messages": [{"role": "user", "content": None}]}, PromptError),
        ({"messages": said("w1", "w2")[1:]}, ConversationError),
        ({"messages": [{"role": "tool", "content": "w1"}]}, PromptError),
        ({"messages": [{"content": "w1"}]}, PromptError),
        ({"messages": said("w1"), "settings": {}}, SettingsError),
    ],
)
def test_requests_that_are_none(
    open_page: Callable[[Path], page.Page], model: Path, request_: dict[str, Any], error: type[Exception]
) -> None:
    opened = open_page(model)
    with pytest.raises(error):
        opened.say(json.dumps({"settings": SETTINGS} | request_))
    assert answered(opened, said("w1"))


def test_a_model_without_a_template_does_not_chat(
    open_page: Callable[[Path], page.Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_page(write_random_model(tmp_path / "model.gguf", CONFIG))
    monkeypatch.setitem(sys.modules, "fabella.chat", None)  # which the page has only beside models that chat
    assert json.loads(opened.info())["chats"] is False
    with pytest.raises(TemplateError):
        answered(opened, said("w1"))
    with pytest.raises(TemplateError):
        opened.count(json.dumps({"messages": said("w1")}))
