"""Tells a story in PyTorch, from a run folder or a GGUF file.

    python -m train.sample out/stories -i "Once upon a time" -t 0.8 -n 200

The flags are llama2.c's. Everything but the model is the product's own: tokenizer, loop and sampler come from
py/fabella, so that the same seed tells the same story here, in a terminal and on the page, up to the model's rounding.
It computes the whole text anew for every token: slow, but nothing can be wrong with a cache that is not there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fabella.console import run_command
from fabella.errors import EngineError, FabellaError
from fabella.generate import generate
from fabella.sampler import Candidate, Change, Settings, random_seed

from .load import load_model
from .model import Llama


class TorchLogits:
    """Logits [vocab_size] in the form in which the sampler reads them; those that are not finite do not count."""

    def __init__(self, logits: Tensor) -> None:
        self.vocab_size = len(logits)
        self.logits = logits.float().cpu()
        self.ids = torch.isfinite(self.logits).nonzero().flatten()  # those that count
        if not len(self.ids):
            raise EngineError("choosing a token: no logit is a finite number")

    def shortlist(self, k: int) -> list[tuple[int, float]]:
        """The ``k`` best candidates as (token, logit), best first, of equals the smaller token first."""
        order = torch.sort(self.logits[self.ids], descending=True, stable=True).indices[:k]
        best = self.ids[order]
        return list(zip(best.tolist(), self.logits[best].tolist(), strict=True))

    def candidates(self, k: int, temperature: float) -> list[Candidate]:
        """The same with their probabilities."""
        probabilities = torch.softmax(self.logits.double()[self.ids] / temperature, dim=0)
        order = torch.sort(self.logits[self.ids], descending=True, stable=True).indices[:k]
        best = self.ids[order]
        return list(zip(best.tolist(), self.logits[best].tolist(), probabilities[order].tolist(), strict=True))

    def draw(self, temperature: float, coin: float) -> int:
        """The first token, in the order of ids, at which the running sum of probabilities exceeds ``coin``."""
        running = torch.softmax(self.logits[self.ids].double() / temperature, dim=0).cumsum(dim=0)
        place = int(torch.searchsorted(running, coin, right=True))
        return int(self.ids[min(place, len(self.ids) - 1)])

    def mean(self, temperature: float) -> float:
        """The mean of the logits, each with its token's probability."""
        logits = self.logits.double()[self.ids]
        return float(torch.softmax(logits / temperature, dim=0) @ logits)

    @contextmanager
    def changed(self, tokens: Sequence[int], change: Change) -> Iterator[TorchLogits]:
        """These logits, but for some tokens what ``change`` makes of theirs."""
        changed = self.logits.clone()
        changed[list(tokens)] = torch.tensor(change(changed[list(tokens)].tolist()))
        yield TorchLogits(changed)


class TorchModel:
    """A ``fabella.session.Model``: the reference model, which computes all its tokens anew each time."""

    def __init__(self, model: Llama) -> None:
        self.model = model
        self.context = model.config.seq_len
        self.tokens: list[int] = []

    @property
    def position(self) -> int:
        """How many tokens were read."""
        return len(self.tokens)

    @torch.no_grad()
    def prefill(self, tokens: Sequence[int]) -> TorchLogits:
        """Read ``tokens`` and return the logits after the last."""
        self.tokens.extend(tokens)
        read = torch.tensor([self.tokens], device=self.model.token_embd.weight.device)
        return TorchLogits(self.model(read)[0, -1])

    def forward(self, token: int) -> TorchLogits:
        """Read one token and return the logits after it."""
        return self.prefill((token,))

    def rewind(self, position: int) -> None:
        """Forget all tokens from ``position`` on."""
        del self.tokens[position:]


def main() -> int:
    """The command line. Returns the exit status."""
    return run_command("sample", lambda: tell(parse_arguments()), (OSError, ValueError, FabellaError))


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m train.sample", description="Tell a story in PyTorch.")
    parser.add_argument("model", type=Path, help="the --out folder of train.train, or a .gguf file")
    parser.add_argument("-i", dest="prompt", metavar="PROMPT", default="", help="how the story begins")
    parser.add_argument("-t", dest="temperature", type=float, default=1.0, help="0 = greedy (default 1.0)")
    parser.add_argument("-p", dest="top_p", type=float, default=0.9, help="top-p, 1 = off (default 0.9)")
    parser.add_argument("-k", dest="top_k", type=int, default=0, help="top-k, 0 = off (default 0)")
    parser.add_argument("-s", dest="seed", type=int, default=0, help="0 = another one each time (default 0)")
    parser.add_argument("-n", dest="length", type=int, default=256, help="tokens, the prompt's included (default 256)")
    return parser.parse_args()


def tell(options: argparse.Namespace) -> None:
    """Print a story as the command's ``options`` say. Raises ``OSError``, ``ValueError`` or ``FabellaError``."""
    if options.length < 0:
        raise ValueError(f"-n {options.length}: must be 0 (the whole context) or more")
    seed = options.seed or random_seed()
    settings = Settings(options.temperature, options.top_p, options.top_k, seed)
    model, tokenizer = load_model(options.model)
    story = generate(TorchModel(model), tokenizer, options.prompt, settings, options.length)
    sampled = 0
    try:
        for step in story:
            print(step.text, end="", flush=True)
            sampled += not step.from_prompt
    finally:
        print(flush=True)
    print(f"[{sampled} tokens, seed {seed}]", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
