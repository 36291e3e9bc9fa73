"""The glass box: see, in a notebook or a program, how a model chooses its next token and what it is like inside.

An example::

    import fabella
    from fabella.look import Story

    model = fabella.load("stories.gguf")
    story = Story(model.tell("Once upon a time", seed=1, look=True))
    story                        # in a notebook: the text, each token tinted by how likely it was
    story[7]                     # one token: what was likely, what each step of the sampler left, where the coin fell
    story[7].choice.candidates   # the same as numbers (fabella.choice)
    model.inside("Once upon a time there was")     # which tokens each head looks at, what each layer would say

Everything shown is what was computed. What is drawn is HTML without scripts and without anything from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from fabella.choice import Choice, probability_of
from fabella.engine import Inside
from fabella.errors import SettingsError
from fabella.generate import Step
from fabella.sampler import Candidate
from fabella.tokenizer import Token, Tokenizer

# Blue on white and on black, told apart by all eyes; the text keeps the colour that it has.
TINT = "background:rgba(30,120,220,{:.2f})"
CELL = 'style="text-align:left;padding:0 .6em;white-space:pre"'
SHOWN = 10  # candidates


class Piece(str):
    """A piece of a text that is told, which knows how its token was chosen.

    Attributes
    ----------
    token : Token
        The token.
    choice : Choice or None
        How it was chosen; None in the prompt.
    """

    token: Token
    choice: Choice | None
    _tokenizer: Tokenizer

    def __new__(cls, step: Step, tokenizer: Tokenizer) -> Piece:
        """Make a piece of a step of a story."""
        piece = super().__new__(cls, step.text)
        piece.token, piece.choice, piece._tokenizer = tokenizer.token(step.token), step.choice, tokenizer
        return piece

    def _repr_html_(self) -> str:
        """The candidates as ranked bars, what each step left of them, and where the coin fell."""
        choice = self.choice
        if choice is None:
            return f"<p><b>{_shown(self.token)}</b>: given by the prompt</p>"
        columns = [("model", choice.candidates), *((step.name, step.kept) for step in choice.steps)]
        head = "".join(f"<th {CELL}>{escape(name)}</th>" for name, _ in columns)
        ids = list(dict.fromkeys([id for id, _, _ in choice.candidates[:SHOWN]] + [choice.token, choice.picked]))
        rows = [self._row(id, columns) for id in ids]
        others = [_bar(1 - sum(probability_of(id, kept) for id in ids)) for _, kept in columns]
        rows.append(f"<tr><td {CELL}><i>all others</i></td>{''.join(others)}</tr>")
        return (
            f"<table><tr><th {CELL}>token</th>{head}</tr>{''.join(rows)}</table><p>{self._coin(choice)} "
            f"The model's uncertainty was {choice.entropy / math.log(2):.2f} bits.</p>"
        )

    def _row(self, id: int, columns: Sequence[tuple[str, Sequence[Candidate]]]) -> str:
        name = _shown(self._tokenizer.token(id))
        name = f"<b>{name} ←</b>" if id == self.token.id else name
        return f"<tr><td {CELL}>{name}</td>{''.join(_bar(probability_of(id, kept)) for _, kept in columns)}</tr>"

    def _coin(self, choice: Choice) -> str:
        picked = _shown(self._tokenizer.token(choice.picked))
        given = f" <b>{_shown(self.token)}</b> was taken in its place." if choice.is_given else ""
        if choice.coin is None:
            return f"At temperature 0 the likeliest is taken: <b>{picked}</b>.{given}"
        place = f"from {choice.begin:.4f} to {choice.end:.4f}"
        return f"The coin, {choice.coin:.4f}, falls on <b>{picked}</b> ({place} on the running sum).{given}"


class Story(list[Piece]):
    """The pieces of a text; in a notebook each token is tinted by its probability.

    Parameters
    ----------
    pieces
        What ``model.tell(..., look=True)`` yields.

    Raises
    ------
    SettingsError
        If it was told without ``look=True``.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        for piece in pieces:
            if not isinstance(piece, Piece):
                raise SettingsError("look", "must be true, or else nothing is known of how the tokens were chosen")
            self.append(piece)

    def __str__(self) -> str:
        return "".join(self)

    def _repr_html_(self) -> str:
        text = "".join(f"<span{self._tint(piece)}>{escape(piece)}</span>" for piece in self)
        return (
            f'<p style="white-space:pre-wrap">{text}</p><p><small>The deeper the colour of a token, the less likely the'
            " model held it. Point at one to see the likeliest.</small></p>"
        )

    def _tint(self, piece: Piece) -> str:
        choice = piece.choice
        if choice is None:
            return ' style="opacity:.7"'
        names = (
            f"{piece._tokenizer.token(id).text!r} {probability:.1%}" for id, _, probability in choice.candidates[:5]
        )
        title = f"{choice.probability:.1%}, of: " + ", ".join(names)
        return f' style="{TINT.format(0.6 * (1 - choice.probability))}" title="{escape(title)}"'


class View:
    """What the last token of a text is like inside the model.

    Attributes
    ----------
    tokens : list of Token
        Those of the text.
    attention, lens
        See :class:`fabella.engine.Inside`.
    """

    def __init__(self, tokens: Sequence[int], inside: Inside, tokenizer: Tokenizer) -> None:
        self.tokens = [tokenizer.token(token) for token in tokens]
        self.attention, self.lens = inside
        self._tokenizer = tokenizer

    def _repr_html_(self) -> str:
        """For each layer what it would say if it were the last, and the token that each head looks at most."""
        weights: list[list[list[float]]] = self.attention.tolist()  # type: ignore[assignment] # it has three dimensions
        head = "".join(f"<th {CELL}>head {number}</th>" for number in range(1, len(weights[0]) + 1))
        rows = [
            f"<tr><th>{layer}</th>{self._lens(best)}{''.join(map(self._head, heads))}</tr>"
            for layer, (best, heads) in enumerate(zip(self.lens, weights, strict=True), 1)
        ]
        return f"<table><tr><th>layer</th><th {CELL}>would say</th>{head}</tr>{''.join(rows)}</table>"

    def _lens(self, best: Sequence[Candidate]) -> str:
        names = (f"{_shown(self._tokenizer.token(id))} {probability:.0%}" for id, _, probability in best)
        return f"<td {CELL}>{', '.join(names)}</td>"

    def _head(self, weights: Sequence[float]) -> str:
        places = sorted(range(len(weights)), key=lambda place: -weights[place])[:5]
        title = ", ".join(f"{self.tokens[place].text!r} {weights[place]:.0%}" for place in places)
        style = f"padding:0 .6em;white-space:pre;{TINT.format(0.6 * weights[places[0]])}"
        return f'<td style="{style}" title="{escape(title)}">{_shown(self.tokens[places[0]])}</td>'


def _shown(token: Token) -> str:
    """A token as HTML, with what nobody sees made visible."""
    return escape(token.text.replace("\n", "↵").replace(" ", "␣")) or "∅"


def _bar(probability: float) -> str:
    """A cell with a number and a bar behind it."""
    if probability < 1e-9:
        return f"<td {CELL}></td>"
    width = f"{100 * probability:.1f}%"
    bar = f"background:linear-gradient(90deg,rgba(30,120,220,.35) {width},transparent {width})"
    return f'<td style="text-align:right;padding:0 .6em;{bar}">{probability:.1%}</td>'
