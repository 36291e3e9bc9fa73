"""Constraints: what a text may be. Two worked examples of a function that the loop asks before it takes a token.

Such a function is given the text sampled so far and what a token would add to it, and says whether the text may go on
so; instead of what is added it may be given None, and says whether the text may end here::

    def short_words(text: str, added: str | None) -> bool:
        return all(len(word) < 8 for word in (text + (added or "")).split())

    for piece in model.tell("Once upon a time", constraint=short_words): ...

A character of which only some bytes have come yet counts as U+FFFD until the others come. So these two examples have a
model write only characters that are tokens of its own: with most vocabularies not every emoji, nor every Chinese one.

A regular expression becomes such a function by its derivatives (https://doi.org/10.1145/321239.321249): the derivative
by a character is the expression for what may follow it. A text may go on so if its derivative matches anything at all,
and may end here if its derivative matches the empty text. A JSON schema becomes a regular expression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
        In Python's syntax (:mod:`re`), without flags and what looks around: no anchors, look-aheads or references to
        groups. Or what this module makes of one.

    Raises
    ------
    ConstraintError
        If it is none, or has what we do not know.
    """

    def __init__(self, pattern: str | Expression) -> None:
        self._start = pattern if isinstance(pattern, Expression) else _parse(pattern)
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
        `maxItems`, `minLength`, `maxLength`, and `pattern` of the whole string, in which nothing is escaped. True is
        any string, number, truth value or null.

    Raises
    ------
    ConstraintError
        If it has what we do not know.
    """
    return Regex(_json(schema, DEEPEST_SCHEMA))


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


Matches = Callable[[str], object]  # whether a character is one of those meant


def _parse(pattern: str, within: Matches | None = None) -> Expression:
    """The expression of a pattern, all of whose characters are within these."""
    if not isinstance(pattern, str) or len(pattern) > LARGEST_PATTERN:
        raise ConstraintError(f"a pattern is a text of at most {LARGEST_PATTERN} characters")
    try:
        parsed = re._parser.parse(pattern)  # type: ignore[attr-defined]
        if parsed.state.flags & ~re.UNICODE:
            raise ConstraintError(f"{pattern!r}: flags are not known here")
        return _sequence(parsed, within)
    except (re.error, OverflowError) as error:
        raise ConstraintError(f"{pattern!r} is no regular expression: {error}") from None
    except RecursionError:
        raise ConstraintError("the regular expression is nested too deeply") from None


def _sequence(parts: Iterable[tuple[Any, Any]], within: Matches | None) -> Expression:
    expression: Expression = EMPTY
    for kind, value in reversed(list(parts)):
        expression = both(_part(str(kind), value, within), expression)
    return expression


def _part(kind: str, value: Any, within: Matches | None) -> Expression:
    match kind:
        case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
            matches = _one(kind, value)
            return One(Within(matches, within)) if within else One(matches)
        case "BRANCH":
            return either(_sequence(way, within) for way in value[1])
        case "SUBPATTERN" if not value[1] and not value[2]:  # no flags are switched
            return _sequence(value[3], within)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, what = value
            return repeated(_sequence(what, within), least, None if str(most) == "MAXREPEAT" else most)
        case _:
            raise ConstraintError(f"a constraint cannot look around: {kind.lower()} in a pattern is not known")


def _one(kind: str, value: Any) -> Matches:
    match kind:
        case "LITERAL":
            return chr(value).__eq__
        case "NOT_LITERAL":
            return chr(value).__ne__
        case "ANY":
            return "\n".__ne__
        case _:
            return _class(value)


@dataclass(frozen=True)
class Within:
    """Whether a character is one of those meant by both of two functions."""

    one: Matches
    other: Matches

    def __call__(self, character: str) -> bool:
        return bool(self.one(character) and self.other(character))


def _class(items: Iterable[tuple[Any, Any]]) -> Matches:
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

PLAIN = r'[^"\\\x00-\x1f]'
CHARACTER = rf'({PLAIN}|\\(["\\/bfnrt]|u[0-9a-fA-F]{{4}}))'
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


def _json(schema: Any, depth: int) -> Expression:
    """The expression for JSON of a schema."""
    if depth == 0:
        raise ConstraintError(f"the schema is nested more than {DEEPEST_SCHEMA} deep")
    if schema is True or schema == {}:
        return either(map(_parse, TYPES.values()))
    if not isinstance(schema, Mapping):
        raise ConstraintError(f"a schema is an object or true, not {schema!r}")
    if unknown := sorted(map(str, set(schema) - KNOWN)):
        raise ConstraintError(f"the schema's {unknown[0]!r} is not known here")
    if "const" in schema:
        return _literal(schema["const"])
    if "enum" in schema:
        return either(map(_literal, _list(schema, "enum")))
    if "anyOf" in schema:
        return either(_json(way, depth - 1) for way in _list(schema, "anyOf"))
    if isinstance(types := schema.get("type"), list) and types:
        return either(_json({**schema, "type": one}, depth - 1) for one in types)
    match types or ("object" if "properties" in schema else "array" if "items" in schema else None):
        case "object":
            return _object(schema, depth)
        case "array":
            return _array(schema, depth)
        case "string":
            return _string(schema)
        case str(name) if name in TYPES:
            return _parse(TYPES[name])
        case other:
            raise ConstraintError(f"the schema's type {other!r} is not known")


def _list(schema: Mapping[str, Any], name: str) -> list[Any]:
    ways = schema[name]
    if not isinstance(ways, list) or not ways:
        raise ConstraintError(f"the schema's {name} must be a list with something in it")
    return ways


def _text(text: str) -> Expression:
    return _parse(re.escape(text))


def _literal(value: Any) -> Expression:
    try:
        return _text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError):
        raise ConstraintError(f"{value!r} in the schema is no JSON") from None


def _in_brackets(begin: str, within: Expression, end: str) -> Expression:
    return both(_text(begin), both(within, _text(end)))


def _string(schema: Mapping[str, Any]) -> Expression:
    least, most = _bounds(schema, "Length")
    if "pattern" not in schema:
        return _in_brackets('"', repeated(_parse(CHARACTER), least, most), '"')
    if least or most is not None:
        raise ConstraintError("the schema's pattern says already how long the string may be")
    return _in_brackets('"', _parse(schema["pattern"], re.compile(PLAIN).fullmatch), '"')


def _bounds(schema: Mapping[str, Any], of: str) -> tuple[int, int | None]:
    least, most = schema.get(f"min{of}", 0), schema.get(f"max{of}")
    if type(least) is not int or least < 0 or (most is not None and (type(most) is not int or most < least)):
        raise ConstraintError(f"the schema's min{of} and max{of} must be whole numbers, the first not the larger one")
    return least, most


def _array(schema: Mapping[str, Any], depth: int) -> Expression:
    least, most = _bounds(schema, "Items")
    item = _json(schema.get("items", True), depth - 1)
    further = repeated(both(_text(", "), item), max(least - 1, 0), None if most is None else most - 1)
    some = EMPTY if most == 0 else both(item, further)
    return _in_brackets("[", some if least else either((EMPTY, some)), "]")


def _object(schema: Mapping[str, Any], depth: int) -> Expression:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        raise ConstraintError("the schema's properties must be an object, and required a list")
    for name in required:
        if name not in list(properties):
            raise ConstraintError(f"the schema requires {name!r}, but does not say what it is")
    # From the last one on: what may follow where there is no member yet, and where there is one, after a comma.
    first: Expression = EMPTY
    further: Expression = EMPTY
    for name, property in reversed(list(properties.items())):
        member = both(_text(f"{json.dumps(name, ensure_ascii=False)}: "), _json(property, depth - 1))
        here = both(member, further)
        after = both(_text(", "), here)
        first, further = (here, after) if name in required else (either((here, first)), either((after, further)))
    return _in_brackets("{", first, "}")
