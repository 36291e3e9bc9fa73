"""The command line's options for how tokens are picked: the same for a story and for an answer."""

from __future__ import annotations

import argparse

from fabella.errors import FabellaError
from fabella.sampler import Settings, random_seed

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


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options, with the defaults that all of Fabella has."""
    defaults = Settings()
    for name, (flag, words) in OPTIONS.items():
        default = getattr(defaults, name)
        parser.add_argument(
            flag, dest=name, type=type(default), default=default, metavar="N", help=f"{words} (default {default})"
        )
    parser.add_argument(
        "--logit-bias",
        action="append",
        default=[],
        metavar="TOKEN:BIAS",
        help="makes a token likelier, or less likely; -inf forbids it; may be given several times",
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the settings that were asked for. Raises FabellaError."""
    values = {name: getattr(arguments, name) for name in OPTIONS}
    biases = {}
    for text in arguments.logit_bias:
        token, _, bias = text.partition(":")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise FabellaError(f"--logit-bias {text}: must be a token's number, a colon and a number") from None
    return Settings(**values | {"seed": arguments.seed or random_seed(), "logit_bias": biases})
