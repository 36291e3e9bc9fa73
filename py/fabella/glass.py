"""The page's side of the glass box. Loaded when the panel is opened; JSON in, JSON out.

A token is ``{"id", "text", "kind"}``, as :class:`fabella.tokenizer.Token` has it. What was kept of a chosen one goes to
the page and comes back as it is: base64 of `Choice.to_bytes`.
"""

from __future__ import annotations

import binascii
import json
import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from fabella.again import Again, again, again_from
from fabella.choice import Choice, Visible, rest_of
from fabella.engine import Engine
from fabella.errors import PromptError
from fabella.page import base64, settings_of
from fabella.sampler import SHORTLIST, Candidate, Settings
from fabella.session import Session
from fabella.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fabella.page import Page


class Glass:
    """What there is to see of one model.

    Parameters
    ----------
    session, tokenizer
        The model's.
    settings_of
        Reads the settings of a request, as those of a story are read.
    """

    def __init__(
        self, session: Session, tokenizer: Tokenizer, settings_of: Callable[[dict[str, Any]], Settings]
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._settings_of = settings_of

    def choice(self, asked: dict[str, Any]) -> dict[str, Any]:
        """How a token was chosen.

        Parameters
        ----------
        asked
            ``{"choice"}``: what `advance` said of it. With ``"settings"``, those of a story, also what they would have
            made of it, from what was kept; with ``"exactly": true`` from its logits, for which one token is computed
            unless it is the one looked at before. It must still be among the session's then.

        Returns
        -------
        ``{"position", "token", "picked", "entropy", "coin", "begin", "end", "candidates": [[id, logit, probability]],
        "others", "steps": [{"name", "kept": [[id, logit, probability]], "total", "others", "exact"}], "tokens": {id:
        token}}``, the fields of :class:`fabella.choice.Choice` and `Left`; ``"others"`` is the probability of all
        others, ``"tokens"`` has all that are named. With settings, ``"again"`` has the same once more, but for
        ``"tokens"``; its token is -1 where it is not certain.
        """
        choice = self._choice_of(asked)
        said = _described(Again(choice, [True] * len(choice.steps)))
        if "settings" in asked:
            said["again"] = _described(self._again(choice, self._settings_of(asked["settings"]), asked))
        named = {id for part in (said, said.get("again", said)) for id in _named(part)}
        return said | {"tokens": {str(id): self._token(id) for id in sorted(named) if id >= 0}}

    def _choice_of(self, asked: dict[str, Any]) -> Choice:
        try:
            choice = Choice.from_bytes(binascii.a2b_base64(asked["choice"]))
        except (KeyError, TypeError, ValueError):
            raise PromptError("there is no choice to look at") from None
        kept = [*choice.candidates, *(candidate for step in choice.steps for candidate in step.kept)]
        ids = [choice.token, choice.picked, *(id for id, _, _ in kept)]
        numbers = [choice.entropy, choice.coin or 0.0, choice.begin, choice.end, *(x for one in kept for x in one[1:])]
        if not all(0 <= id < len(self._tokenizer) for id in ids) or not all(map(math.isfinite, numbers)):
            raise PromptError("this choice is none of this model's")
        return choice

    def _again(self, choice: Choice, settings: Settings, asked: dict[str, Any]) -> Again:
        engine = cast(Engine, self._session.model)
        if not asked.get("exactly", False):
            return again_from(choice, settings, len(self._tokenizer), engine.exp, engine.log)
        settings.check(len(self._tokenizer))
        logits = cast(Visible, self._session.visit(choice.position - 1))
        said = self._session.tokens[: choice.position]
        made = again(logits, settings, choice.coin, said, spared=self._tokenizer.stop_ids)
        if made.choice.candidates[:SHORTLIST] != choice.candidates[:SHORTLIST]:
            raise PromptError("the model has computed another text meanwhile: tell this one again")
        return made

    def inside(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What a token is like inside the model.

        Parameters
        ----------
        asked
            ``{"position", "token"}``: of the session's tokens, the number and which it is, or null for the one that
            begins every text; to see what led to a chosen token, the one before it, and ``"choice"``, what was kept of
            how that was chosen, if it is known. ``"top"``: how many of each layer's likeliest tokens; 3 if it is not
            said.

        Returns
        -------
        ``{"tokens": [token], "layers", "heads", "attention", "lens": [[[id, logit, probability]]], "names": {id:
        token}}``: the tokens up to this one; base64 of float32, (layers, heads, tokens), little-endian; for each layer
        its likeliest tokens; and what these are.
        """
        position, top = asked.get("position"), asked.get("top", 3)
        if type(position) is not int or type(top) is not int:
            raise PromptError("where to look must be the number of a token")
        tokens, token = self._session.tokens, asked.get("token")
        if 0 <= position < len(tokens) and (self._tokenizer.bos_id if token is None else token) != tokens[position]:
            raise PromptError("this token is not what the model has computed there: tell the text again")
        inside = self._session.inside(position, min(max(top, 1), 100))
        if "choice" in asked:  # or else another text may have this token there
            candidates, _ = cast(Visible, self._session.visit(position)).truth()
            if candidates[:SHORTLIST] != self._choice_of(asked).candidates[:SHORTLIST]:
                raise PromptError("the model has computed another text meanwhile: tell this one again")
        layers, heads, _ = inside.attention.shape or (0, 0, 0)
        return {
            "tokens": [self._token(id) for id in tokens[: position + 1]],
            "layers": layers,
            "heads": heads,
            "attention": base64(inside.attention.tobytes()),
            "lens": inside.lens,
            "names": {str(id): self._token(id) for id in sorted({id for best in inside.lens for id, _, _ in best})},
        }

    def tokens(self, asked: dict[str, Any]) -> dict[str, Any]:
        """How a text becomes tokens.

        Parameters
        ----------
        asked
            ``{"text"}``, the beginning of a story.

        Returns
        -------
        ``{"words": [{"text", "tokens": [token and "bytes"], "merges"}]}``: the parts that become tokens by themselves,
        the bytes in hexadecimal, and how many merges each took.
        """
        words = self._tokenizer.words(self._text(asked))
        described = [
            {"text": word.text, "tokens": [self._spelled(id) for id in word.ids], "merges": len(word.steps) - 1}
            for word in words
        ]
        return {"words": described}

    def merges(self, asked: dict[str, Any]) -> dict[str, Any]:
        """How a word became tokens: of ``{"text", "word": its number}``, ``{"steps": [[its parts], …]}``."""
        number = asked.get("word")
        words = self._tokenizer.words(self._text(asked))
        word = next(islice(words, number, None), None) if type(number) is int and number >= 0 else None
        if word is None:
            raise PromptError(f"there is no word {number!r} in the text")
        return {"steps": word.steps}

    def _text(self, asked: dict[str, Any]) -> str:
        text, context = asked.get("text"), self._session.model.context
        if not isinstance(text, str):
            raise PromptError("there is no text")
        if (fewest := self._tokenizer.fewest_tokens(text)) > context:  # a novel is refused before it is encoded
            raise PromptError(f"the text is at least {fewest} tokens long, but the model's context is {context}")
        return text

    def _token(self, id: int) -> dict[str, Any]:
        token = self._tokenizer.token(id)
        return {"id": id, "text": token.text, "kind": token.kind}

    def _spelled(self, id: int) -> dict[str, Any]:
        return self._token(id) | {"bytes": self._tokenizer.spelled(id).hex()}


def _described(made: Again) -> dict[str, Any]:
    choice = made.choice
    steps = [
        step._asdict() | {"others": rest_of(step.kept), "exact": exact}
        for step, exact in zip(choice.steps, made.exact, strict=True)
    ]
    return choice._asdict() | {"steps": steps, "others": choice.others}


def _named(described: dict[str, Any]) -> Sequence[int]:
    lists: list[list[Candidate]] = [described["candidates"], *(step["kept"] for step in described["steps"])]
    return [described["token"], described["picked"], *(id for kept in lists for id, _, _ in kept)]


def answer(page: Page, request: str, _file: object = None) -> str:
    """Look into the page's model; a story or an answer that is going on is not disturbed.

    Parameters
    ----------
    page
        The page.
    request
        JSON: what the methods of `Glass` say, and ``"what"``, which of them is asked: "choice", "inside", "tokens" or
        "merges".

    Returns
    -------
    JSON.

    Raises
    ------
    FabellaError
        If there is nothing of the kind to be seen.
    """
    asked = json.loads(request)
    session, model = page.lend()
    glass = Glass(session, model.tokenizer, lambda settings: settings_of(settings)[0])
    verbs = {"choice": glass.choice, "inside": glass.inside, "tokens": glass.tokens, "merges": glass.merges}
    what = asked.get("what")
    if what not in verbs:
        raise PromptError(f"{what!r} cannot be looked at, only {', '.join(verbs)}")
    return json.dumps(verbs[what](asked), allow_nan=False)
