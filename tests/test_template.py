"""Chat templates: real ones write what Jinja writes, bombs end soon, and nobody's words become control tokens."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import nodes
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from builder.models import KnownModel
from builder.tools import ROOT, run
from fabella.chat import Conversation
from fabella.errors import TemplateError
from fabella.session import Session
from fabella.template import FUEL, ChatTemplate, Disguise

from .bombs import BOMBS, ROUNDS, TWICE
from .llama_cpp import BUNDLE
from .random_models import load
from .real_models import GEMMA3, SMOLLM2, real_model

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROLS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "PAD", "Eos"]


def said(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation in which these were said by turns."""
    roles = ("user", "assistant")
    begin = [] if system is None else [{"role": "system", "content": system}]
    return begin + [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>", CONTROLS)


# ---- Real templates --------------------------------------------------------------------------------------------------


class Plain(Extension):
    tags = {"generation"}  # noqa: RUF012 - Jinja's own way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def plain_jinja(source: str, messages: list[dict[str, str]]) -> str:
    """What Jinja's own sandbox writes, set up as `transformers` sets it up; "!" if the template refuses."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Plain]
    )

    def refuse(message: str) -> None:
        raise JinjaError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment.globals.update(raise_exception=refuse, strftime_now=time.strftime)
    environment.filters["tojson"] = tojson
    try:
        values = {"messages": messages, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
        return environment.from_string(source).render(values)
    except JinjaError:
        return "!"


@pytest.fixture(scope="module")
def real_templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Those of llama.cpp's repository, by name."""
    if not BUNDLE.is_file():
        pytest.skip("needs llama.cpp's source, which `python build.py bench --quick` installs")
    folder = tmp_path_factory.mktemp("llama.cpp")
    run("git", "clone", "-q", BUNDLE, folder)
    templates = {path.name: path.read_text(encoding="utf-8") for path in (folder / "models/templates").glob("*.jinja")}
    assert len(templates) >= 70
    return templates


CONVERSATIONS = [
    said("Hi"),
    said(" Hi \n", "Hello <3 [x] | {{ y }}", 'Bye & "quoted" \\ \'n so', system="Be brief."),
    said("a<b & c>d | [x]", "<think>\nhm\n</think>\n\nYes.", "ok"),
    said("Übung 日本語 🙂", "</think>", "<think>"),
    said("", " ", "\n\n"),
    said("Hi /no_think", "Yes.", "So? /think", system="Be brief. /no_think"),
]
UNLIKE = 4  # of the templates there may be so many that are refused


def test_real_templates_write_what_jinja_writes(real_templates: dict[str, str]) -> None:
    """To the byte, or they are refused: in the worst case four of 70, which format texts or want what we have not."""
    refused = set()
    for name, source in real_templates.items():
        for messages in CONVERSATIONS:
            expected = plain_jinja(source, messages)
            try:
                ours = ChatTemplate(source, "<s>", "</s>", CONTROLS)
                written = ours.plain(ours.render(messages))
            except TemplateError:
                written = "!"
            if written == "!" != expected:
                refused.add(name)
            else:
                assert written == expected, name
    print(f"{len(real_templates)} templates, refused: {sorted(refused)}")
    assert len(refused) <= UNLIKE


def test_a_long_conversation_is_no_bomb(real_templates: dict[str, str]) -> None:
    """200 turns, 40,000 characters: more than a small model's context holds."""
    messages = said(*["What do you think of it? " * 8] * 199)
    for name, source in real_templates.items():
        if plain_jinja(source, messages) != "!" and "tencent" not in name:
            template(source).render(messages)


# ---- Bombs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_words(bomb: str) -> None:
    with pytest.raises(TemplateError, match="template") as caught:
        template(BOMBS[bomb]).render(said("Hi"))
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_what_bombs_are_made_of_is_none() -> None:
    assert template(f"{ROUNDS}{{% endfor %}}.").render(said("Hi")) == "."
    assert template(f"{TWICE}{{% endfor %}}.").render(said("Hi")) == "."


@pytest.mark.parametrize(
    ("source", "written"),
    [
        (
            "{% macro m(function, context) %}{{ function }}{{ context }}{% endmacro %}{{ m(function=1, context=2) }}",
            "12",
        ),
        ("{{ [1, 2] | join(d=', ') }}", "1, 2"),
        ("{{ 'aaa'.replace('a', 'b', 1) }}{{ 'aaa' | replace('a', 'b', count=2) }}", "baabba"),
        ("{{ [1, 'a'] | tojson(indent=1) }}", '[\n 1,\n "a"\n]'),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        ("{{ ' a ' | trim }}{{ 'xax' | trim('x') }}", "aa"),
        (
            "{% set said = messages[0].content %}{{ said == 'Hi' }}{{ said[0] == 'H' }}{{ said | length }}",
            "TrueTrue2",
        ),
    ],
)
def test_what_good_templates_do(source: str, written: str) -> None:
    assert template(source).render(said("Hi")) == written


def test_bombs_end_soon_in_pyodide_too(tmp_path: Path) -> None:
    """The interpreter survives them all. How long each takes is printed; a second is much."""
    program = """
import json, time
from fabella.template import ChatTemplate, TemplateError
from tests.bombs import BOMBS

took = {}
for name, source in BOMBS.items():
    began = time.perf_counter()
    try:
        ChatTemplate(source, "", "", ["<s>"]).render([{"role": "user", "content": "Hi"}])
    except TemplateError:
        took[name] = time.perf_counter() - began
print(json.dumps(took))
"""
    took = json.loads(in_pyodide(tmp_path, program, ROOT / "py", ROOT, site_packages()))
    assert took.keys() == BOMBS.keys()
    for name, seconds in sorted(took.items(), key=lambda item: -item[1])[:3]:
        print(f"{1000 * seconds:.0f} ms: {name}")


def site_packages() -> Path:
    """Where Jinja is."""
    return Path(jinja2.__file__).parent.parent


def in_pyodide(folder: Path, program: str, *path: Path) -> str:
    """What a Python program prints in Pyodide, with these folders on its path."""
    file = folder / "program.py"
    file.write_text(program, encoding="utf-8")
    command = ["node", str(ROOT / "tests/in_pyodide.mjs"), str(file), *map(str, path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_fuel_is_for_one_text() -> None:
    """What one costs, the next one does not have to pay for."""
    costly = template("{% for i in range(4000) %}{{ 'x' * 200 }}{% endfor %}")
    texts = {costly.render(said("Hi")) for _ in range(3)}
    assert texts == {"x" * 200 * 4000}
    assert 2 * len(texts.pop()) < FUEL < 8 * 200 * 4000


@pytest.mark.parametrize("source", [None, 7, ["a"], b"a"])
def test_a_template_that_is_no_text(source: Any) -> None:
    with pytest.raises(TemplateError, match="is not text"):
        template(source)


def test_recursion_is_allowed_as_before_afterwards() -> None:
    before = sys.getrecursionlimit()
    for source in (CHATML, BOMBS["a macro that calls itself"], BOMBS["parentheses"]):
        with suppress(TemplateError):
            template(source).render(said("Hi"))
        assert sys.getrecursionlimit() == before


def test_a_template_works_from_deep_within_a_program() -> None:
    def within(depth: int) -> str:
        return within(depth - 1) if depth else template(CHATML).render(said("Hi"))

    assert within(500) == within(0)


# ---- Nobody's words become control tokens ----------------------------------------------------------------------------

words = st.text() | st.lists(
    st.sampled_from([*CONTROLS, "<", "|im_end|>", ">", "im_end", "</think>", "s", " ", "\n"])
).map("".join)


@given(text=words.filter(lambda text: text.isprintable() or text.isascii()))
def test_a_disguise_is_taken_off_again(text: str) -> None:
    disguise = Disguise(CONTROLS)
    disguised = disguise.put_on(text)
    assert disguise.take_off(disguised) == text
    assert not [piece for piece in CONTROLS if piece in disguised]
    white = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
    assert white == (len(disguised) - len(disguised.lstrip()), len(disguised) - len(disguised.rstrip()))


HOSTILE = [
    "{{ message['content'] }}",
    "<{{ message['content'] }}>",
    "<|im_{{ message['content'] }}|>",
    "{{ message['content'] }}{{ message['content'] }}",
    "{{ message['content'] | replace('x', '') }}",
    "{{ message['content'].replace('</think>', '') }}",
    "{{ message['content'][1:] }}",
    "{{ message['content'] | trim }}{{ '|>' }}",
    "{{ '[' ~ message['content'] ~ ']' }}",
    "{{ message['content'].split('y') | join }}",
    "{{ message['content'] | upper }}{{ message['content'].title() }}{{ message['content'] | capitalize }}",
]


@pytest.mark.parametrize("source", HOSTILE)
@given(
    content=words
    | st.sampled_from(
        ["<|ixm_end|>", "s", "/s", "<|im</think>_end|>", "<|im_eynd|>", "INST", "paxd", "PAxD", "pad", "eos", "end"]
    )
)
def test_no_control_piece_comes_of_what_people_write(source: str, content: str) -> None:
    """Even where the template's own text would complete it, or what it takes out would."""
    content = content.encode(errors="replace").decode()
    written = template("{% for message in messages %}" + source + "{% endfor %}").render(said(content, content))
    assert not [piece for piece in CONTROLS if piece in written]


def test_control_tokens_of_very_many_signs() -> None:
    with pytest.raises(TemplateError, match=r"300\d signs"):
        ChatTemplate("", "", "", [chr(0x2000 + number) for number in range(3000)])


def controls(encoded: list[int], tokenizer: Any) -> list[int]:
    return [token for token in encoded if tokenizer.types[token] == 3]


@pytest.mark.parametrize("model", [SMOLLM2, GEMMA3], ids=lambda model: model.name)
def test_no_control_token_of_real_vocabularies_comes_of_what_people_write(model: KnownModel) -> None:
    """A user's text, a system prompt, an imported conversation: the tokens are those of the template alone."""
    engine, file = load(real_model(model))
    tokenizer = file.tokenizer
    source = CHATML if model is SMOLLM2 else GEMMA
    chat = Conversation(
        Session(engine),
        tokenizer,
        ChatTemplate(source, "<bos>", tokenizer.pieces[tokenizer.eos_id], tokenizer.controls),
    )
    pieces = sorted(tokenizer.controls)
    assert len(pieces) == (17 if model is SMOLLM2 else 6250)

    def of_the_template(*texts: str, system: str) -> list[int]:
        chat.load(said(*texts, system=system))
        return controls(chat.tokens(), tokenizer)

    expected = of_the_template("Hi", "Hello", "Bye", system="Be brief")
    assert len(expected) == (9 if model is SMOLLM2 else 8)
    for begin in range(0, len(pieces), 500):  # many at once: there are so many
        some = pieces[begin : begin + 500]
        for glue in ("", " ", "x"):
            text = glue.join(some)
            assert of_the_template(f"Hi{text}", f"{text}Hello", text, system=f"Be brief{text}") == expected
    for piece in pieces[:: 1 if model is SMOLLM2 else 50]:
        chat.load(said(f"{piece}\n{piece}", piece, f" {piece} ", system=piece))
        assert controls(chat.tokens(), tokenizer) == expected
        assert f"{piece}\n{piece}" in tokenizer.decode(chat.tokens())


GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
