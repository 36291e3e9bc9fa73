"""The Llama architecture in plain PyTorch: the reference that everything else is tested against.

A Llama turns token ids into logits (one score per possible next token):

    ids [B, T] -> embedding -> n_layers x (attention, feed-forward) -> norm -> logits [B, T, vocab_size]

Each half of a block reads a normalised copy of the residual stream ``x`` and adds its answer to it. Three things set it
apart from the first transformers: RMSNorm before each half, rotary positions (RoPE) in attention, and a gated (SwiGLU)
feed-forward. Several query heads may share one key/value head (GQA), and the output matrix may be the embedding itself
("tied").

Shapes: B sequences, T tokens in each, D = dim, H = n_heads, K = n_kv_heads, S = head_size = D / H.

Parameters are named as in GGUF files (``blk.0.attn_q.weight``...), so exporting is copying: no name is translated and
no weight is permuted. That is why RoPE rotates adjacent pairs (2i, 2i+1) here, as llama2.c and GGUF's "llama" do.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fabella.modelfile import Config

from . import explain


def rope_table(config: Config) -> tuple[Tensor, Tensor]:
    """Cosine and sine, [seq_len, S/2] each, of the angle by which pair i of a head turns at each position.

    Pair i turns by ``rope_base ** (-2i / S)`` radians per position: the first pairs fast, the last ones slowly.
    """
    size = config.head_size
    frequency = config.rope_base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)  # [S/2]
    angle = torch.outer(torch.arange(config.seq_len, dtype=torch.float64), frequency)  # [seq_len, S/2]
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each adjacent pair of ``x`` [B, heads, T, S] by its position's angle (``cos``, ``sin``: [T, S/2])."""
    even, odd = x[..., 0::2], x[..., 1::2]  # [B, heads, T, S/2] each
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)  # [B, heads, T, S/2, 2]
    return turned.flatten(-2)  # [B, heads, T, S]


class RMSNorm(nn.Module):
    """Divide each vector by its root mean square, then scale each channel by a learned weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:  # [..., D] -> [..., D]
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Block(nn.Module):
    """One layer: attention moves information between positions, the feed-forward works on each position alone."""

    def __init__(self, config: Config, dropout: float) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        dim, kv_dim, hidden = config.dim, config.kv_dim, config.hidden_dim
        self.attn_norm = RMSNorm(dim, config.norm_eps)
        self.attn_q = nn.Linear(dim, dim, bias=False)
        self.attn_k = nn.Linear(dim, kv_dim, bias=False)
        self.attn_v = nn.Linear(dim, kv_dim, bias=False)
        self.attn_output = nn.Linear(dim, dim, bias=False)
        self.ffn_norm = RMSNorm(dim, config.norm_eps)
        self.ffn_gate = nn.Linear(dim, hidden, bias=False)
        self.ffn_up = nn.Linear(dim, hidden, bias=False)
        self.ffn_down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, T, D] -> [B, T, D]
        x = x + self.dropout(self.attention(self.attn_norm(x), cos, sin))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, T, D] -> [B, T, D]
        batch, length, _ = x.shape
        heads, kv_heads, size = self.config.n_heads, self.config.n_kv_heads, self.config.head_size
        q = self.attn_q(x).view(batch, length, heads, size).transpose(1, 2)  # [B, H, T, S]
        k = self.attn_k(x).view(batch, length, kv_heads, size).transpose(1, 2)  # [B, K, T, S]
        v = self.attn_v(x).view(batch, length, kv_heads, size).transpose(1, 2)  # [B, K, T, S]
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        # Query head h reads key/value head h // (H / K).
        k = k.repeat_interleave(heads // kv_heads, dim=1)  # [B, H, T, S]
        v = v.repeat_interleave(heads // kv_heads, dim=1)  # [B, H, T, S]
        # softmax(q k^T / sqrt(S)) v, where a position sees itself and what came before it.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, H, T, S]
        return self.attn_output(mixed.transpose(1, 2).reshape(batch, length, heads * size))

    def feed_forward(self, x: Tensor) -> Tensor:  # [B, T, D] -> [B, T, D]
        return self.ffn_down(F.silu(self.ffn_gate(x)) * self.ffn_up(x))


class Llama(nn.Module):
    """The whole model. ``Llama(config)(tokens)`` gives logits [B, T, vocab_size] for ``tokens`` [B, T] (int64).

    While it is trained, ``dropout`` is the share of each half's answer that is left out, another one at each step: a
    model that goes through a small text many times learns it by heart less.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocab_size, config.dim)
        self.blk = nn.ModuleList(Block(config, dropout) for _ in range(config.n_layers))
        self.output_norm = RMSNorm(config.dim, config.norm_eps)
        self.output = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        cos, sin = rope_table(config)
        self.register_buffer("cos", cos, persistent=False)  # [seq_len, S/2], computed, not learned
        self.register_buffer("sin", sin, persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Small normal weights; smaller still where they write into the stream: 2 x n_layers of those add up."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_stream = name.endswith(("attn_output.weight", "ffn_down.weight"))
                std = 0.02 / math.sqrt(2 * self.config.n_layers) if into_stream else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(self.states(tokens))

    def states(self, tokens: Tensor) -> Tensor:
        """What the layers make of ``tokens`` [B, T]: the normed stream [B, T, D], of which `logits` are read."""
        length = tokens.shape[1]
        if length > self.config.seq_len:
            raise ValueError(f"tokens: {length} of them, but the context holds {self.config.seq_len}")
        cos, sin = self.cos[:length], self.sin[:length]  # [T, S/2]
        x = self.token_embd(tokens)  # [B, T, D]
        for block in self.blk:
            x = block(x, cos, sin)
        return self.output_norm(x)

    def logits(self, states: Tensor) -> Tensor:  # [..., D] -> [..., vocab_size]
        """The scores of all tokens at the positions whose ``states`` are given; not every position may be of use."""
        head = self.token_embd if self.output is None else self.output
        return F.linear(states, head.weight)


if __name__ == "__main__":
    explain(__doc__)
