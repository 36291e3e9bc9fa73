"""The command line's options for how tokens are picked: the same for a story and for an answer."""

from __future__ import annotations

import argparse

from fabella.card import DEFAULTS, Card
from fabella.errors import FabellaError, SettingsError
from fabella.generate import Ending
from fabella.sampler import LARGEST_SEED, Settings, random_seed

OPTIONS = {
    "temperature": ("-t", "temperature, 0 = greedy"),
    "top_p": ("-p", "top-p, 1 = off"),
    "top_k": ("-k", "top-k, 0 = off"),
    "seed": ("-s", "random seed, 0 = another one each time"),
    "min_p": ("--min-p", "least probability beside the likeliest's, 0 = off"),
    "typical_p": ("--typical-p", "typical sampling, 1 = off"),
    "repetition_penalty": ("--repetition-penalty", "for what was said already, 1 = off"),
    "presence_penalty": ("--presence-penalty", "taken off the logits of what was said, 0 = off"),
    "frequency_penalty": ("--frequency-penalty", "the same for each time that it was said, 0 = off"),
    "penalty_window": ("--penalty-window", "tokens that the penalties look back"),
}


def add_sampling(parser: argparse.ArgumentParser, counted: str) -> None:
    """Add the options, with the defaults that all of Fabella has; `counted` says what the length is of."""
    group = parser.add_argument_group(
        "how tokens are picked", "A model's file may have other defaults than these; `fabella info` tells them."
    )
    plain = Settings()
    for name, (flag, words) in OPTIONS.items():
        default = DEFAULTS.get(name, getattr(plain, name))
        group.add_argument(flag, dest=name, type=type(default), metavar="N", help=f"{words} (default {default})")
    group.add_argument("-n", dest="length", type=int, metavar="N", help=f"{counted} (default {DEFAULTS['length']})")
    group.add_argument(
        "--logit-bias",
        action="append",
        default=[],
        metavar="TOKEN:BIAS",
        help="makes a token likelier, or less likely; -inf forbids it; may be given several times",
    )
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )


def settings_of(arguments: argparse.Namespace, card: Card) -> Settings:
    """Return the settings that were asked for, or else those of the model. Raises FabellaError."""
    asked = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    seed = asked.pop("seed", 0)
    if not 0 <= seed <= LARGEST_SEED:
        raise SettingsError("seed", f"is {seed}, but must be from 1 to {LARGEST_SEED}, or 0")
    values = {name: value for name, value in card.settings.items() if name != "length"} | asked
    biases = {}
    for text in arguments.logit_bias:
        token, _, bias = text.partition(":")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise FabellaError(f"--logit-bias {text}: must be a token's number, a colon and a number") from None
    return Settings(**values | {"seed": seed or random_seed(), "logit_bias": biases})


def ending_of(arguments: argparse.Namespace, card: Card, shift: bool = False) -> Ending:
    """Return when the text is to end: as was asked for, or else as the model says. Raises FabellaError."""
    length = card.settings["length"] if arguments.length is None else arguments.length
    if length < 0:
        raise FabellaError(f"-n {length}: must be 0 or more")
    return Ending(int(length), arguments.stop, shift=shift, loops=True)
