"""What a model says of itself to those who meet it: its title, what it is, how its texts may begin, how it picks.

It travels in the model's file, in keys of our own, so that page, shelf and terminal say the same of it. All texts are
somebody's: whoever shows them, shows them as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fabella.config import LARGEST
from fabella.errors import ModelFileError, SettingsError, short_text
from fabella.metadata import get, quoted
from fabella.sampler import Settings

TITLE, ABOUT, BEGINNINGS, LANGUAGE, SETTINGS = (
    f"fabella.{name}" for name in ("title", "about", "beginnings", "language", "settings")
)
# The longest text of each, in bytes; of the beginnings, that of one.
LONGEST = {TITLE: 100, ABOUT: 1000, BEGINNINGS: 1000, LANGUAGE: 35, SETTINGS: 1000}
MOST_BEGINNINGS = 12
LANGUAGE_TAG = "[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*"  # of BCP 47's tags those that people use

# How page and terminal pick tokens unless the model says otherwise; what is not named is as in Settings.
DEFAULTS = {"temperature": 0.8, "top_p": 0.9, "length": 0}
SETTABLE = tuple(name for name in Settings.__dataclass_fields__ if name not in ("seed", "logit_bias"))


@dataclass(frozen=True)
class Card:
    """A model's words about itself; what it does not say is empty."""

    title: str = ""  # of a page around it
    about: str = ""  # one or two sentences
    beginnings: tuple[str, ...] = ()  # of texts that it tells well
    language: str = ""  # a tag of BCP 47, as "en"
    own: Mapping[str, float] = field(default_factory=dict)  # those of its settings that are not the defaults

    @property
    def settings(self) -> dict[str, float]:
        """How its tokens are to be picked: of Settings all but seed and logit_bias; and "length", 0: the context."""
        plain = Settings()
        return {name: getattr(plain, name) for name in SETTABLE} | DEFAULTS | dict(self.own)


def read_card(metadata: Mapping[str, Any]) -> Card:
    """Read a model's card out of its metadata.

    Raises
    ------
    ModelFileError
        If a value is of the wrong kind, too long or out of range; `field` is its key.
    """
    language = _text(metadata, LANGUAGE)
    if language and not re.fullmatch(LANGUAGE_TAG, language):
        raise ModelFileError(LANGUAGE, f"must be a language's tag, such as en or pt-BR, not {quoted(language)}")
    return Card(_shown(metadata, TITLE), _shown(metadata, ABOUT), _beginnings(metadata), language, _settings(metadata))


def _text(metadata: Mapping[str, Any], key: str) -> str:
    text: str = get(metadata, key, str, default="")
    _check_length(key, text)
    return text


def _shown(metadata: Mapping[str, Any], key: str) -> str:
    """A text for people, in one line."""
    return short_text(_text(metadata, key), LONGEST[key])


def _check_length(key: str, text: str) -> None:
    size = len(text.encode("utf-8", "replace"))
    if size > LONGEST[key]:
        raise ModelFileError(key, f"a text of {size} bytes is longer than the {LONGEST[key]} that are accepted")


def _beginnings(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    texts = get(metadata, BEGINNINGS, list, default=[])
    if len(texts) > MOST_BEGINNINGS:
        raise ModelFileError(BEGINNINGS, f"{len(texts)} is more than the {MOST_BEGINNINGS} that are accepted")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ModelFileError(BEGINNINGS, "must be texts, none of them empty")
        _check_length(BEGINNINGS, text)
    return tuple(texts)


def _settings(metadata: Mapping[str, Any]) -> dict[str, float]:
    text = _text(metadata, SETTINGS)
    try:
        values = json.loads(text or "{}")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ModelFileError(SETTINGS, 'must be a JSON object, such as {"temperature": 0.7}')
    for name in values:
        if name not in (*SETTABLE, "length"):
            raise ModelFileError(SETTINGS, f"there is no setting {quoted(name)}")
    length = values.get("length", 0)
    if type(length) is not int or not 0 <= length <= LARGEST["seq_len"]:
        raise ModelFileError(SETTINGS, f"length must be a whole number from 0 to {LARGEST['seq_len']}")
    try:
        Settings(**{name: value for name, value in values.items() if name != "length"})
    except SettingsError as error:
        raise ModelFileError(SETTINGS, str(error)) from None
    return values


def metadata_of(
    title: str | None = None,
    about: str | None = None,
    beginnings: Sequence[str] | None = None,
    language: str | None = None,
    settings: str | None = None,
) -> dict[str, Any]:
    """Return the metadata of such words, without those that are None. Raises ModelFileError as `read_card`."""
    texts = None if beginnings is None else list(beginnings)
    given = {TITLE: title, ABOUT: about, BEGINNINGS: texts, LANGUAGE: language, SETTINGS: settings}
    metadata = {key: value for key, value in given.items() if value is not None}
    read_card(metadata)
    return metadata
