"""Tells many texts at once in PyTorch: in each step the model reads one token of every text, and picks the next one.

What attention needs of the tokens before, their keys and values, is kept (the KV cache), so that a step costs the same
work for one token that reading the whole text anew would cost for all. sample.py does that; the two give the same
logits (tests/test_write.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import explain
from .loop import choose_precision
from .model import Block, Llama, rotate

ROOM = 64  # positions by which the cache grows; then texts that have ended leave it, too


class Teller:
    """A model that reads B texts, a token of each at a time, and remembers them."""

    def __init__(self, model: Llama, count: int) -> None:
        c = model.config
        self.model, self.position, self.room = model, 0, 0
        device = model.token_embd.weight.device
        self.precision = choose_precision(device.type)
        with self.precision:
            dtype = F.linear(torch.zeros(1, c.dim, device=device), model.token_embd.weight).dtype
        # Of each layer the keys and the values: [2, B, K, room, S].
        self.cache = [
            torch.zeros(2, count, c.n_kv_heads, 0, c.head_size, dtype=dtype, device=device) for _ in model.blk
        ]

    def keep(self, texts: Tensor) -> None:
        """Go on with some of the texts: ``texts`` [<= B] are their numbers."""
        self.cache = [cache[:, texts] for cache in self.cache]

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        """Read the next token of each text, ``tokens`` [B], and return the logits after it, [B, vocab_size]."""
        if self.position == self.room:
            self.room += ROOM
            self.cache = [F.pad(cache, (0, 0, 0, ROOM)) for cache in self.cache]
        with self.precision:
            x = self.model.token_embd(tokens)  # [B, D]
            for block, cache in zip(self.model.blk, self.cache, strict=True):
                assert isinstance(block, Block)
                x = x + self._attention(block, block.attn_norm(x), cache)
                x = x + block.feed_forward(block.ffn_norm(x))
            x = self.model.output_norm(x)
            head = self.model.token_embd if self.model.output is None else self.model.output
            logits = F.linear(x, head.weight)
        self.position += 1
        return logits.float()

    def _attention(self, block: Block, x: Tensor, cache: Tensor) -> Tensor:  # [B, D] -> [B, D]
        c, here = self.model.config, self.position
        heads, kv_heads, size = c.n_heads, c.n_kv_heads, c.head_size
        cos, sin = self.model.cos[here], self.model.sin[here]  # [S/2]
        cache[0, :, :, here] = rotate(block.attn_k(x).view(-1, kv_heads, size), cos, sin)
        cache[1, :, :, here] = block.attn_v(x).view(-1, kv_heads, size)
        # The query heads that share a key/value head stand where the positions of a text would.
        q = rotate(block.attn_q(x).view(-1, kv_heads, heads // kv_heads, size), cos, sin)
        k, v = cache[0, :, :, : here + 1], cache[1, :, :, : here + 1]  # [B, K, positions, S]
        mixed = F.scaled_dot_product_attention(q.to(k.dtype), k, v)  # [B, K, H / K, S]
        return block.attn_output(mixed.reshape(-1, c.dim))


def choose(logits: Tensor, temperature: float, top_p: float, min_p: float = 0.0) -> Tensor:
    """Pick a token [B] by each row of ``logits`` [B, vocab_size].

    Temperature 0 takes the likeliest. With ``top_p`` below 1 only the likeliest tokens whose probabilities reach it
    together are picked from; with ``min_p`` above 0 only those that have so much of the likeliest one's probability.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    if min_p > 0:
        probabilities = probabilities.where(probabilities >= min_p * probabilities.amax(-1, keepdim=True), 0)
    if top_p < 1:
        best, order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
        before = best.cumsum(-1) - best  # of the likelier ones
        probabilities = torch.zeros_like(best).scatter(-1, order, best.where(before < top_p, 0))
    # Of waiting times whose rates are the probabilities, the shortest is each token's so often. None may be zero.
    return (torch.empty_like(probabilities).exponential_().clamp(min=1e-12) / probabilities).argmin(-1)


def tell(
    model: Llama,
    beginnings: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    length: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> list[list[int]]:
    """Continue texts that begin with one token or more, each until it ends or has ``length`` tokens.

    A text that has ended has one of ``stop_ids`` as its last token. What is picked follows from PyTorch's random state.
    """
    if length > model.config.seq_len:
        raise ValueError(f"length: {length} tokens, but the context holds {model.config.seq_len}")
    device = model.token_embd.weight.device
    given = torch.tensor([len(beginning) for beginning in beginnings], device=device)
    texts = torch.zeros(len(beginnings), length, dtype=torch.int64, device=device)
    for number, beginning in enumerate(beginnings):
        texts[number, : len(beginning)] = torch.tensor(list(beginning)[:length])
    stops = torch.tensor(sorted(stop_ids), device=device)
    going = torch.arange(len(beginnings), device=device)  # the numbers of the texts that go on
    ended = torch.zeros(len(beginnings), dtype=torch.bool, device=device)  # of these
    teller = Teller(model, len(beginnings))
    for at in range(length - 1):
        if at % ROOM == 0 and ended.any():
            left = (~ended).nonzero()[:, 0]
            if not len(left):
                break
            going, ended = going[left], ended[left]
            teller.keep(left)
        picked = choose(teller.read(texts[going, at]), temperature, top_p, min_p)
        told = at + 1 >= given[going]  # else the beginning says what comes
        texts[going, at + 1] = torch.where(told, picked, texts[going, at + 1])
        ended |= told & torch.isin(picked, stops)
    return [_cut(text, len(beginning), stop_ids) for text, beginning in zip(texts.tolist(), beginnings, strict=True)]


def _cut(text: list[int], given: int, stop_ids: Collection[int]) -> list[int]:
    """A text up to where it ends."""
    end = next((at for at in range(given, len(text)) if text[at] in stop_ids), len(text) - 1)
    return text[: end + 1]


if __name__ == "__main__":
    explain(__doc__)
