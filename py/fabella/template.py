"""Chat templates: how a model's file says a conversation is to be written down (Jinja, in `tokenizer.chat_template`).

A template is a program that came with a file, so it runs in Jinja's sandbox, and what it does is counted: each round of
a loop, each call, each character and element that it makes. However it is written, it ends soon, at the same place on
every machine, and makes nothing large.

What people wrote goes through it in a disguise, in which no part of it can be taken for a control token such as
``<|im_end|>``, whatever it says: those in the result are the template's own.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import wraps
from typing import Any

from fabella.errors import TemplateError, short_text

try:
    from jinja2 import Template, TemplateSyntaxError, nodes, pass_context
    from jinja2.exceptions import SecurityError
    from jinja2.exceptions import TemplateError as JinjaError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.runtime import Context
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
except ImportError as error:
    raise TemplateError(
        f"a chat needs Jinja, which is not here ({error}): pip install jinja2, or in Pyodide "
        "await micropip.install('jinja2')"
    ) from error

LONGEST_TEMPLATE = 1 << 15  # characters; real ones have up to 17,000
LONGEST_TEXT = 1 << 20  # characters, or elements of a list
# What a template may use up in all, and what each thing that it does uses: 1 for each character that it writes, and for
FUEL, ELEMENT, ROUND, CALL = 1 << 22, 24, 64, 256  # an element that is made or looked at, a loop's round, a call
AT_ONCE = 16  # characters that are made or looked at for 1
LARGEST_NUMBER = 1 << 63
DEPTH = 300  # of Python's stack, below the caller
CALLS = 50  # of macros within each other

Message = Mapping[str, str]  # {"role": "system", "user" or "assistant", "content": what was said}


class ChatTemplate:
    """A model's chat template.

    Parameters
    ----------
    source
        Its text.
    bos, eos
        The pieces of the tokens that begin and end a text, which it may want to write.
    controls
        The pieces of all control tokens.

    Raises
    ------
    TemplateError
        If it is no template, or too large.
    """

    def __init__(self, source: str, bos: str, eos: str, controls: Iterable[str]) -> None:
        if not isinstance(source, str):
            raise TemplateError("the model's chat template is not text")
        if len(source) > LONGEST_TEMPLATE:
            raise TemplateError(f"the model's chat template is longer than {LONGEST_TEMPLATE} characters")
        self._environment = _Environment()
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._disguise = Disguise(controls)
        with self._counted():
            self._template: Template = self._environment.from_string(source)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Write a conversation down.

        Parameters
        ----------
        messages
            What was said, in its order.
        add_generation_prompt
            Whether the text ends where the model's next answer begins.

        Returns
        -------
        The text, with what people wrote in disguise: see `plain`.

        Raises
        ------
        TemplateError
            If the template refuses these messages, fails or does too much.
        """
        said = [{"role": m["role"], "content": self._disguise.put_on(m["content"])} for m in messages]
        with self._counted():
            values = {"messages": said, "add_generation_prompt": add_generation_prompt, **self._tokens}
            return "".join(self._template.generate(values))

    def disguised(self, text: str) -> str:
        """Return what someone wrote as it looks in a text that `render` returns."""
        return self._disguise.put_on(text)

    def plain(self, text: str) -> str:
        """Return a text that `render` returned, or a part of it, without its disguise."""
        return self._disguise.take_off(text)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Whatever happens in a template is counted from here on, and becomes a TemplateError."""
        self._environment.fuel = FUEL
        self._environment.calls = 0
        try:
            with _shallow():
                yield
        except TemplateSyntaxError as error:
            place = f"line {error.lineno} of the chat template"
            raise TemplateError(f"{place}: {short_text(str(error.message))}") from error
        except SecurityError as error:
            raise TemplateError(f"the chat template does what none may do: {short_text(str(error))}") from error
        except (RecursionError, SyntaxError) as error:  # Python's own: it is its compiler that has had enough
            raise TemplateError("the chat template is nested too deeply") from error
        except JinjaError as error:
            raise TemplateError(f"the chat template says: {short_text(str(error))}") from error
        except (
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            MemoryError,
            RuntimeError,
        ) as error:
            raise TemplateError(f"the chat template failed: {short_text(str(error))}") from error


FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, MemoryError, RuntimeError)


@contextmanager
def _shallow() -> Iterator[None]:
    """Have recursion end early in Pyodide, whose stack is small, and where there is one thread."""
    if sys.platform != "emscripten":
        yield
        return
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(min(limit, _depth() + DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _depth() -> int:
    depth, frame = 0, sys._getframe()
    while frame.f_back:
        depth, frame = depth + 1, frame.f_back
    return depth


class Disguise:
    """How text is kept from being taken for control tokens, while a template works on it.

    Of the look of each control token some signs, as ``<``, ``|`` and ``>`` of ``<|im_end|>``, become halves of a
    surrogate pair, which no text has. Where what is left could still complete what a template writes around it, others
    mark where it begins and ends. All else is left alone, for templates that look at it: letters, white space, paths,
    the tags around a thought. (A template that compares signs in what people wrote does not find them.)

    Parameters
    ----------
    controls
        The pieces of the control tokens.

    Raises
    ------
    TemplateError
        If they have more signs than there are halves.
    """

    EDGE = "\udfff"
    THOUGHTS = ("<think>", "</think>")
    COMMON = "_/-.,:;!?'\"()"  # signs that people and templates have much use for

    def __init__(self, controls: Iterable[str]) -> None:
        self._controls = list(filter(None, controls))
        signs = sorted({sign for piece in self._controls for sign in self._look(piece)})
        if len(signs) >= 0xDFFF - 0xD800:
            raise TemplateError(f"the vocabulary's control tokens are made of {len(signs)} signs, which is too many")
        halves = {sign: chr(0xD800 + number) for number, sign in enumerate(signs)}
        self._on = str.maketrans(halves)
        self._off = str.maketrans({half: sign for sign, half in halves.items()} | {self.EDGE: ""})
        kept = [tag for tag in self.THOUGHTS if not any(_overlap(piece, tag) for piece in self._controls)]
        self._kept = re.compile("|".join(map(re.escape, kept)) or r"(?!)")
        self._longest = max(map(len, self._controls), default=0)
        # What the beginning and the end of a text could complete: only what is left as it is could.
        ends = {piece[at:] for piece in self._controls for at in range(1, len(piece))}
        begins = {piece[:at] for piece in self._controls for at in range(1, len(piece))}
        self._ends = tuple(end for end in ends if end == end.translate(self._on))
        self._begins = tuple(begin for begin in begins if begin == begin.translate(self._on))

    def put_on(self, text: str) -> str:
        """Return a text in disguise. It must be well-formed."""
        parts, at = [], 0
        for found in self._kept.finditer(text):
            parts += [text[at : found.start()].translate(self._on), found[0]]
            at = found.end()
        disguised = "".join([*parts, text[at:].translate(self._on)])
        core = disguised.strip()
        if not core:
            return disguised
        within = len(core) < self._longest and any(core in piece for piece in self._controls)
        first = self.EDGE if within or core.startswith(self._ends) else ""
        last = self.EDGE if within or core.endswith(self._begins) else ""
        begin = disguised.index(core)
        return f"{disguised[:begin]}{first}{core}{last}{disguised[begin + len(core) :]}"

    def take_off(self, text: str) -> str:
        """Return the text that was put into disguise."""
        return text.translate(self._off)

    def _look(self, piece: str) -> Iterable[str]:
        """The signs of a piece that people do without; or all of its signs; or its first letter."""
        signs = [sign for sign in piece if not sign.isalnum() and not sign.isspace()]
        return (
            [sign for sign in signs if sign not in self.COMMON]
            or signs
            or {piece[0].lower(), piece[0].upper(), piece[0]}
        )


def _overlap(a: str, b: str) -> bool:
    """Whether one of two texts is within the other, or begins with what the other ends with."""
    return a in b or b in a or any(a.endswith(b[:size]) or a.startswith(b[-size:]) for size in range(1, len(b)))


# ---- The sandbox -----------------------------------------------------------------------------------------------------

METHODS = frozenset(
    """
    split splitlines strip lstrip rstrip startswith endswith replace removeprefix removesuffix join
    upper lower title capitalize count find index isdigit isalpha isalnum isspace
    items keys values get
    """.split()
)  # none whose time is the product of two lengths
CHEAP_FILTERS = frozenset("count d default first items last length safe".split())  # whatever goes in
TEXT_FILTERS = frozenset("abs capitalize float int lower string title upper".split())
LIST_FILTERS = frozenset(
    "dictsort list map max min reject rejectattr reverse select selectattr unique".split()
)  # which look at each element, or character
CHEAP_TESTS = frozenset(
    """
    boolean callable defined divisibleby even false filter float integer iterable mapping none number odd sameas
    sequence string test true undefined
    """.split()
)  # whatever is tested
GLOBALS = frozenset(("range", "namespace", "dict"))
TOO_MUCH = "it makes a text or a list that is too long, or takes too many rounds to do so"


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which a template has so much fuel and no way to use it up at once."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=self._write,
            autoescape=False,
        )
        self.fuel = FUEL
        self.calls = 0
        known = self.filters
        self.filters = {name: known[name] for name in CHEAP_FILTERS}
        self.filters |= {name: self._counting(known[name]) for name in TEXT_FILTERS}
        self.filters |= {name: self._counting(known[name], of_lists=True) for name in LIST_FILTERS}
        self.filters |= {"join": self._join, "replace": self._replace, "trim": self._trim}
        self.filters |= {"indent": self._indent, "tojson": self._tojson}
        self.filters |= {name[1:]: getattr(self, name) for name in ("_made", "_seen", "_plain_text", "_round_of")}
        tests: Any = self.tests
        self.tests = {name: test if name in CHEAP_TESTS else self._counting(test) for name, test in tests.items()}
        self.globals = {name: self.globals[name] for name in GLOBALS}
        self.globals |= {"range": self._range, "raise_exception": _refuse, "strftime_now": _strftime_now}

    def spend(self, amount: int) -> None:
        """Use up fuel. Raises SecurityError if there is none left."""
        self.fuel -= amount
        if self.fuel < 0:
            raise SecurityError(TOO_MUCH)

    def _seen(self, value: Any) -> Any:
        """Count a value that is looked at: its characters, or all of its elements and theirs."""
        self.spend(ELEMENT)
        if isinstance(value, str):
            self.spend(len(value) // AT_ONCE)
        elif isinstance(value, Mapping):
            for key, element in value.items():
                self._seen(key)
                self._seen(element)
        elif isinstance(value, (list, tuple)):
            for element in value:
                self._seen(element)
        elif isinstance(value, Namespace):
            self._seen(value._Namespace__attrs)
        elif isinstance(value, Sized):  # a range, or what a dictionary holds
            self.spend(ELEMENT * len(value))
        return value

    def _made(self, value: Any) -> Any:
        """Count a value that was made."""
        if isinstance(value, str):
            _check_length(len(value))
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise SecurityError("it computes with very large numbers")
        return self._seen(value)

    @pass_context  # or else the compiler would write out what is constant, uncounted
    def _write(self, _context: Context, value: Any) -> str:
        """Count what is written out."""
        text = self._plain_text(value)
        self.spend(len(text))
        return text

    def _plain_text(self, value: Any) -> str:
        self._seen(value)
        return str(self._made(str(value)))

    def _counting(self, filter: Callable[..., Any], of_lists: bool = False) -> Callable[..., Any]:
        """The same filter, counting what goes in and what comes out."""

        @wraps(filter)  # with the marks by which Jinja passes it its environment
        def counted(*arguments: Any, **named: Any) -> Any:
            given = [value for value in arguments if not isinstance(value, (_Environment, Context, nodes.EvalContext))]
            self._seen((*given, *named.values()))
            if of_lists:
                each = ELEMENT + sum(_length(value) for value in given[1:]) // AT_ONCE
                self.spend(_length(given[0]) * each)
            return self._made(filter(*arguments, **named))

        return counted

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        """The elements, or these attributes of theirs, as one text."""
        texts, length = [], 0
        for element in value:
            texts.append(self._plain_text(self.getitem(element, attribute) if attribute else element))
            length += len(texts[-1]) + len(d)
            _check_length(length)
        return str(self._made(str(d).join(texts)))

    def _replace(self, s: str, old: str, new: str, count: int | None = None) -> str:
        """A text with another in the place of each of its parts, or of the first ones."""
        s, old, new = str(s), str(old), str(new)
        self._seen(s)
        _check_length(len(s) + (s.count(old) + 1) * len(new))
        return str(self._made(s.replace(old, new, -1 if count is None else count)))

    def _trim(self, value: str, chars: str | None = None) -> str:
        """A text without white space, or these characters, around it."""
        _check_stripped(chars)
        return str(self._made(str(self._seen(value)).strip(chars)))

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what a template calls, if it may."""
        self.spend(CALL)
        name, subject = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        if isinstance(subject, (str, bytes, list, tuple, Mapping, int, float)):
            if name not in METHODS:
                raise SecurityError(f"{name}() is not allowed")
            self._seen((subject, arguments))
            if name == "replace":
                named = {key: value for key, value in named.items() if not key.startswith("_")}  # Jinja's own
                return self._replace(str(subject), *arguments, **named)
            if name == "join":
                return self._join(arguments[0], str(subject))
            if name in ("strip", "lstrip", "rstrip"):
                _check_stripped(*arguments)
        self.calls += 1
        if self.calls > CALLS:
            raise SecurityError("macros call each other without end")
        try:
            return self._made(super().call(context, function, *arguments, **named))
        finally:
            self.calls -= 1

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what a template computes, if it may."""
        if operator == "**" or (operator == "%" and isinstance(left, (str, bytes))):
            raise SecurityError(f"{operator} is not allowed")
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int):
                    _check_length(len(one) * other)
        if operator == "+":
            _check_length(_length(left) + _length(right))
        return self._made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        """Refuse str.format, whose widths know no bounds."""
        if isinstance(getattr(value, "__self__", None), str) and value.__name__ in ("format", "format_map"):
            raise SecurityError("format() is not allowed")
        return None

    def _range(self, *bounds: int) -> range:
        """As Python's, counted."""
        rounds = range(*bounds)
        if len(rounds) > FUEL // ROUND:
            raise SecurityError(TOO_MUCH)
        return rounds

    def _round_of(self, iterable: Any, written: int) -> Iterator[Any]:
        """Count the rounds of a loop, in each of which so many characters are written."""
        for element in iterable:
            self.spend(ROUND + written)
            yield element

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as `transformers` writes it, with nothing escaped for HTML."""
        self._seen(value)
        if ensure_ascii:
            raise SecurityError("tojson must leave characters as they are")
        if indent is not None and not (type(indent) is int and 0 <= indent <= 8):
            raise SecurityError("tojson indents by 8 at most")
        if separators is not None and not (len(separators) == 2 and all(len(text) < 9 for text in separators)):
            raise SecurityError("tojson has two short separators")
        text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        return str(self._made(text))

    def _indent(self, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        """Indent all lines but the first."""
        by = width if isinstance(width, str) else " " * min(width, 100)
        lines = str(self._seen(s)).split("\n")
        _check_length(len(s) + len(lines) * len(by))
        self.spend(ELEMENT * len(lines))
        rest = [by + line if line or blank else line for line in lines[1:]]
        return str(self._made("\n".join([(by if first else "") + lines[0], *rest])))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _rewritten(super()._parse(source, name, filename))
        assert isinstance(tree, nodes.Template)
        tree.set_environment(self)
        return tree


def _rewritten(node: nodes.Node) -> nodes.Node:
    """The same program, but that all it does is counted.

    What is joined by ``~`` is added, so that `call_binop` sees it. Lists, dictionaries and slices that are made, what
    is compared, and loops go through a filter; a macro's text is counted where it is called.
    """
    for field, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, field, [_rewritten(v) if isinstance(v, nodes.Node) else v for v in value])
        elif isinstance(value, nodes.Node):
            setattr(node, field, _rewritten(value))
    if isinstance(node, nodes.Concat):
        whole, *others = [_filtered(part, "plain_text") for part in node.nodes]
        for other in others:
            whole = nodes.Add(whole, other, lineno=node.lineno)
        return whole
    if isinstance(node, nodes.For) and node.recursive:
        raise SecurityError("a loop must not call itself")
    if isinstance(node, nodes.For):
        node.iter = _filtered(node.iter, "round_of", nodes.Const(_written_in(node.body), lineno=node.lineno))
    if isinstance(node, nodes.Compare):
        node.expr = _filtered(node.expr, "seen")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "seen")
    is_made = isinstance(node, (nodes.List, nodes.Dict)) or (isinstance(node, nodes.Tuple) and node.ctx == "load")
    is_slice = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    return _filtered(node, "made") if is_made or is_slice else node


def _filtered(node: nodes.Node, name: str, *arguments: nodes.Expr) -> nodes.Expr:
    """What a filter makes of an expression."""
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


def _written_in(body: Iterable[nodes.Node]) -> int:
    """How many characters of a template's own text are in it."""
    return sum(len(data.data) for node in body for data in node.find_all(nodes.TemplateData))


class _Generation(Extension):
    """``{% generation %}``, which marks the model's part of a text for training: here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _check_stripped(chars: str | None = None) -> None:
    if chars is not None and len(chars) > 100:
        raise SecurityError("so many characters cannot be stripped")


def _check_length(length: int) -> None:
    if length > LONGEST_TEXT:
        raise SecurityError(TOO_MUCH)


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _refuse(message: Any) -> None:
    raise JinjaError(str(message))


def _strftime_now(format: str) -> str:
    """The date, as a template wants it."""
    if not re.fullmatch(r"(%-?[a-zA-Z%]|[^%]){0,100}", format, re.DOTALL):
        raise SecurityError("this is no format of a date")
    return time.strftime(format)
