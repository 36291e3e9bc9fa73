"""Constraints: what a text may be. Two worked examples of a function that the loop asks before it takes a token.

Such a function is given the text sampled so far and what a token would add to it, and says whether the text may go on
so; instead of what is added it may be given None, and says whether the text may end here::

    def short_words(text: str, added: str | None) -> bool:
        return all(len(word) < 8 for word in (text + (added or "")).split())

    for piece in model.tell("Once upon a time", constraint=short_words): ...

A character of which only some bytes have come yet counts as U+FFFD until the others come.

A regular expression becomes such a function by its derivatives (https://doi.org/10.1145/321239.321249): the derivative
by a character is the expression for what may follow it. A text may go on so if its derivative matches anything at all,
and may end here if its derivative matches the empty text. A JSON schema becomes a regular expression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from fabella.errors import ConstraintError

LARGEST_PATTERN = 20_000  # characters
DEEPEST_SCHEMA = 20
MOST_WAYS = 500  # in which a text may go on at one place


class Regex:
    """A constraint: the whole text matches a regular expression.

    Parameters
    ----------
    pattern
        In Python's syntax (:mod:`re`), without what looks around: no anchors, look-aheads or references to groups.

    Raises
    ------
    ConstraintError
        If it is none, or has what we do not know.
    """

    def __init__(self, pattern: str) -> None:
        self._start = _parse(pattern)
        self._text, self._state = "", self._start  # what was asked about last, and what may follow it

    def __call__(self, text: str, added: str | None) -> bool:
        """Whether the text may go on so, or with None, whether it may end here."""
        if not text.startswith(self._text):
            self._text, self._state = "", self._start
        self._state = _derived(self._state, text[len(self._text) :])
        self._text = text
        return self._state.nullable if added is None else _derived(self._state, added) is not NEVER


def json_schema(schema: Mapping[str, Any] | bool = True) -> Regex:
    """Return a constraint: the text is JSON of this schema, written without white space but after ``:`` and ``,``.

    Parameters
    ----------
    schema
        As json-schema.org has it, of which these are known: `type` (one or several), `enum`, `const`, `anyOf`,
        `properties` (all of them in their order, those that are not `required` or not), `items`, `minItems`,
        `maxItems`, `minLength`, `maxLength`, `pattern` of the whole string. True is any string, number, truth value or
        null.

    Raises
    ------
    ConstraintError
        If it has what we do not know.
    """
    return Regex(_pattern_of(schema, DEEPEST_SCHEMA))


# ---- Regular expressions ---------------------------------------------------------------------------------------------


class Expression:
    """A regular expression. Two that are built in the same way are equal.

    Attributes
    ----------
    nullable : bool
        Whether it matches the empty text.
    parts : tuple
        What it is built of.
    """

    def __init__(self, nullable: bool, *parts: Any) -> None:
        self.nullable = nullable
        self.parts = parts
        self._hash = hash((type(self), *parts))  # of all that it is built of: so it is computed once

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Expression)
            and type(self) is type(other)
            and self._hash == other._hash
            and self.parts == other.parts
        )

    def derivative(self, character: str) -> Expression:
        """What may follow this character; NEVER if nothing may."""
        return NEVER


class Empty(Expression):
    """The empty text."""


NEVER, EMPTY = Expression(False), Empty(True)


class One(Expression):
    """One character, of which a function says whether it is the right one."""

    def __init__(self, matches: Callable[[str], object]) -> None:
        super().__init__(False, matches)

    def derivative(self, character: str) -> Expression:
        (matches,) = self.parts
        return EMPTY if matches(character) else NEVER


class Both(Expression):
    """One expression, then another."""

    def __init__(self, first: Expression, then: Expression) -> None:
        super().__init__(first.nullable and then.nullable, first, then)

    def derivative(self, character: str) -> Expression:
        first, then = self.parts
        after = both(first.derivative(character), then)
        return either((after, then.derivative(character))) if first.nullable else after


class Either(Expression):
    """Any one of some expressions."""

    def __init__(self, ways: frozenset[Expression]) -> None:
        super().__init__(any(way.nullable for way in ways), ways)

    def derivative(self, character: str) -> Expression:
        (ways,) = self.parts
        return either(way.derivative(character) for way in ways)


class Repeated(Expression):
    """An expression, so and so often in a row."""

    def __init__(self, what: Expression, least: int, most: int | None) -> None:
        super().__init__(least == 0 or what.nullable, what, least, most)

    def derivative(self, character: str) -> Expression:
        what, least, most = self.parts
        fewer = repeated(what, max(least - 1, 0), None if most is None else most - 1)
        return both(what.derivative(character), fewer)


def both(first: Expression, then: Expression) -> Expression:
    """One expression, then another."""
    if first is NEVER or then is NEVER:
        return NEVER
    if first is EMPTY:
        return then
    return first if then is EMPTY else Both(first, then)


def either(ways: Iterable[Expression]) -> Expression:
    """Any one of some expressions."""
    flat: set[Expression] = set()
    for way in ways:
        flat |= way.parts[0] if isinstance(way, Either) else {way}
    flat.discard(NEVER)
    if len(flat) > MOST_WAYS:
        raise ConstraintError("the regular expression can match in too many ways: repeat less within what is repeated")
    return Either(frozenset(flat)) if len(flat) > 1 else next(iter(flat), NEVER)


def repeated(what: Expression, least: int, most: int | None) -> Expression:
    """An expression, so and so often in a row."""
    if most == 0 or what is EMPTY:
        return EMPTY
    if what is NEVER:
        return EMPTY if least == 0 else NEVER
    return what if least == most == 1 else Repeated(what, least, most)


@lru_cache(maxsize=1 << 16)
def _derivative(state: Expression, character: str) -> Expression:
    return state.derivative(character)


def _derived(state: Expression, text: str) -> Expression:
    for character in text:
        state = _derivative(state, character)
        if state is NEVER:
            break
    return state


# ---- What Python's re makes of a pattern -----------------------------------------------------------------------------


def _parse(pattern: str) -> Expression:
    if not isinstance(pattern, str) or len(pattern) > LARGEST_PATTERN:
        raise ConstraintError(f"a pattern is a text of at most {LARGEST_PATTERN} characters")
    try:
        return _sequence(re._parser.parse(pattern))  # type: ignore[attr-defined]
    except (re.error, OverflowError) as error:
        raise ConstraintError(f"{pattern!r} is no regular expression: {error}") from None
    except RecursionError:
        raise ConstraintError("the regular expression is nested too deeply") from None


def _sequence(parts: Iterable[tuple[Any, Any]]) -> Expression:
    expression: Expression = EMPTY
    for kind, value in reversed(list(parts)):
        expression = both(_part(str(kind), value), expression)
    return expression


def _part(kind: str, value: Any) -> Expression:
    match kind:
        case "LITERAL":
            return One(chr(value).__eq__)
        case "NOT_LITERAL":
            return One(chr(value).__ne__)
        case "ANY":
            return One("\n".__ne__)
        case "IN":
            return One(_class(value))
        case "BRANCH":
            return either(map(_sequence, value[1]))
        case "SUBPATTERN" if not value[1] and not value[2]:  # no flags are switched
            return _sequence(value[3])
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, what = value
            return repeated(_sequence(what), least, None if str(most) == "MAXREPEAT" else most)
        case _:
            raise ConstraintError(f"a constraint cannot look around: {kind.lower()} in a pattern is not known")


def _class(items: Iterable[tuple[Any, Any]]) -> Callable[[str], object]:
    """What a class of characters matches, as Python itself says."""
    text = ""
    for kind, value in items:
        match str(kind):
            case "NEGATE":
                text += "^"
            case "LITERAL":
                text += re.escape(chr(value))
            case "RANGE":
                text += "-".join(re.escape(chr(end)) for end in value)
            case "CATEGORY":
                name = str(value).removeprefix("CATEGORY_")
                sign = {"DIGIT": "d", "SPACE": "s", "WORD": "w"}[name.removeprefix("NOT_")]
                text += "\\" + (sign.upper() if name.startswith("NOT_") else sign)
    return re.compile(f"[{text}]").fullmatch


# ---- JSON ------------------------------------------------------------------------------------------------------------

CHARACTER = r'([^"\\\x00-\x1f]|\\(["\\/bfnrt]|u[0-9a-fA-F]{4}))'
TYPES = {
    "string": f'"{CHARACTER}*"',
    "integer": r"-?(0|[1-9][0-9]{0,17})",
    "number": r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?",
    "boolean": "(true|false)",
    "null": "null",
}
KNOWN = frozenset(
    """
    type enum const anyOf properties required items minItems maxItems minLength maxLength pattern additionalProperties
    title description default examples $schema $id
    """.split()
)


def _pattern_of(schema: Any, depth: int) -> str:
    if depth == 0:
        raise ConstraintError(f"the schema is nested more than {DEEPEST_SCHEMA} deep")
    if schema is True or schema == {}:
        return _any_of(TYPES.values())
    if not isinstance(schema, Mapping):
        raise ConstraintError(f"a schema is an object or true, not {schema!r}")
    if unknown := sorted(map(str, set(schema) - KNOWN)):
        raise ConstraintError(f"the schema's {unknown[0]!r} is not known here")
    if "const" in schema:
        return _literal(schema["const"])
    if "enum" in schema:
        return _any_of(map(_literal, schema["enum"]))
    if "anyOf" in schema:
        return _any_of(_pattern_of(way, depth - 1) for way in schema["anyOf"])
    if isinstance(types := schema.get("type"), list):
        return _any_of(_pattern_of({**schema, "type": one}, depth) for one in types)
    match types or ("object" if "properties" in schema else "array" if "items" in schema else None):
        case "object":
            return _object(schema, depth)
        case "array":
            return _array(schema, depth)
        case "string":
            return _string(schema)
        case str(name) if name in TYPES:
            return TYPES[name]
        case other:
            raise ConstraintError(f"the schema's type {other!r} is not known")


def _any_of(patterns: Iterable[str]) -> str:
    return f"({'|'.join(patterns)})"


def _literal(value: Any) -> str:
    return re.escape(json.dumps(value, ensure_ascii=False))


def _string(schema: Mapping[str, Any]) -> str:
    if "pattern" in schema:
        return f'"({schema["pattern"]})"'
    if "minLength" in schema or "maxLength" in schema:
        return f'"{CHARACTER}{_times(schema, "Length")}"'
    return TYPES["string"]


def _times(schema: Mapping[str, Any], of: str, less: int = 0) -> str:
    """How often, as a pattern says it: ``{minLength,maxLength}``, each so much less."""
    least, most = schema.get(f"min{of}", 0), schema.get(f"max{of}")
    if type(least) is not int or least < 0 or (most is not None and (type(most) is not int or most < least)):
        raise ConstraintError(f"the schema's min{of} and max{of} must be whole numbers, the first not the larger one")
    return f"{{{max(least - less, 0)},{'' if most is None else most - less}}}"


def _array(schema: Mapping[str, Any], depth: int) -> str:
    item = _pattern_of(schema.get("items", True), depth - 1)
    if schema.get("maxItems") == 0:
        return r"\[\]"
    some = f"{item}(, {item}){_times(schema, 'Items', less=1)}"
    return rf"\[{some}\]" if schema.get("minItems") else rf"\[({some})?\]"


def _object(schema: Mapping[str, Any], depth: int) -> str:
    properties, required = schema.get("properties", {}), schema.get("required", ())
    if missing := set(required) - set(properties):
        raise ConstraintError(f"the schema requires {min(missing)!r}, but does not say what it is")
    members = [
        (f"{_literal(name)}: {_pattern_of(property, depth - 1)}", name in required)
        for name, property in properties.items()
    ]
    # Which members there are decides where the commas go: each way to begin with a member, then those after it.
    begins = []
    for number, (member, is_required) in enumerate(members):
        after = "".join(f", {m}" if needed else f"(, {m})?" for m, needed in members[number + 1 :])
        begins.append(member + after)
        if is_required:
            break
    else:
        begins.append("")
    return rf"\{{{_any_of(begins)}\}}"
