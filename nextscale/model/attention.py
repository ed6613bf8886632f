"""Segment-causal attention, its explicit key-value cache, and VAR's transformer block.

A *segment* is the prefix or one step's tokens. A token sees its own segment and all earlier ones, so attention is one
unmasked call per segment over the keys up to its end: no mask tensor, and training runs the code of cached inference.
Shapes: B batch, L tokens, C width, H heads, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cache:
    """Keys and values of the segments run so far, per layer."""

    def __init__(self, later: int = 0) -> None:
        """Reserve room for this many tokens after those of the first call; beyond it each call copies the cache."""
        self.segments = 0
        """Number of segments cached."""
        self._later = later
        self._cached: list[Tensor] = []
        """Per layer, keys and values: 2 B H L D with room."""
        self._lengths: list[int] = []

    def extend(self, layer: int, k_BHLD: Tensor, v_BHLD: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's new keys and values; returns all of them."""
        batch, heads, count, width = k_BHLD.shape
        if layer == len(self._cached):
            self._cached.append(k_BHLD.new_empty(2, batch, heads, count + self._later, width))
            self._lengths.append(0)
        start = self._lengths[layer]
        end = self._lengths[layer] = start + count
        cached = self._cached[layer]
        if end > cached.shape[3]:
            cached = self._cached[layer] = torch.cat(
                [cached[:, :, :, :start], cached.new_empty(2, *k_BHLD.shape)], dim=3
            )
        cached[0, :, :, start:end], cached[1, :, :, start:end] = k_BHLD, v_BHLD
        return cached[0, :, :, :end], cached[1, :, :, :end]

    def clear(self) -> None:
        """Forget all segments."""
        self.segments = 0
        self._cached.clear()
        self._lengths.clear()


class SelfAttention(nn.Module):
    """Multi-head attention with l2-normalized queries and keys and a learned sharpness per head (VAR).

    With `own_step`, a token sees the first `prefix` tokens of the sequence and its own segment only.
    """

    MAX_LOG_SCALE = math.log(100)

    def __init__(self, width: int, heads: int, *, own_step: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.own_step = own_step
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.scale_mul = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.proj = nn.Linear(width, width)

    def forward(
        self, x_BLC: Tensor, segments: Sequence[int], layer: int, cache: Cache | None, *, prefix: int = 0
    ) -> Tensor:
        B, L, C = x_BLC.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]).to(self.qkv.weight.dtype)
        qkv = F.linear(x_BLC, self.qkv.weight, bias)
        q, k, v = qkv.view(B, L, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        scale = self.scale_mul.clamp(max=self.MAX_LOG_SCALE).exp()
        q, k = F.normalize(q.float(), dim=-1) * scale, F.normalize(k.float(), dim=-1)
        # On a CPU the fused kernel is faster in float32 than in bfloat16.
        q, k, v = (t.to(torch.float32 if x_BLC.device.type == "cpu" else qkv.dtype) for t in (q, k, v))
        if cache is not None and not (self.own_step and prefix == 0):
            k, v = cache.extend(layer, k, v)
        past = k.shape[2] - L
        out = []
        start = 0
        for length in segments:
            end = start + length
            seen_k, seen_v = k[:, :, : past + end], v[:, :, : past + end]
            if self.own_step:
                step = slice(max(prefix, past + start), past + end)
                seen_k, seen_v = k[:, :, step], v[:, :, step]
                if prefix:
                    seen_k, seen_v = (torch.cat([t[:, :, :prefix], t[:, :, step]], dim=2) for t in (k, v))
            with torch.autocast(x_BLC.device.type, enabled=False):
                out.append(F.scaled_dot_product_attention(q[:, :, start:end], seen_k, seen_v, scale=1.0))
            start = end
        joined = torch.cat(out, dim=2).transpose(1, 2).reshape(B, L, C).to(qkv.dtype)
        projected: Tensor = self.proj(joined)
        return projected


class FeedForward(nn.Module):
    """Two linear layers around a GELU (tanh form)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each shifted, scaled and gated by the condition (AdaLN).

    With a shared AdaLN the block only adds its own offsets to the six vectors that the stack computed once.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, shared_adaln: bool, own_step: bool = False) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads, own_step=own_step)
        self.ffn = FeedForward(width, round(width * mlp_ratio))
        self.ada: nn.Linear | None = None if shared_adaln else nn.Linear(width, 6 * width)
        self.ada_offset = nn.Parameter(torch.zeros(1, 1, 6, width)) if shared_adaln else None

    def forward(
        self,
        x_BLC: Tensor,
        condition_BC: Tensor,
        shared: Tensor | None,
        segments: Sequence[int],
        layer: int,
        cache: Cache | None,
        *,
        prefix: int = 0,
    ) -> Tensor:
        width = (x_BLC.shape[-1],)
        if self.ada is not None:
            six = self.ada(F.silu(condition_BC)).view(-1, 1, 6, *width)
        else:
            assert shared is not None
            assert self.ada_offset is not None
            six = shared + self.ada_offset
        gain_a, gain_f, scale_a, scale_f, shift_a, shift_f = six.unbind(2)
        h = F.layer_norm(x_BLC, width, eps=1e-6) * (1 + scale_a) + shift_a
        x_BLC = x_BLC + gain_a * self.attn(h, segments, layer, cache, prefix=prefix)
        h = F.layer_norm(x_BLC, width, eps=1e-6) * (1 + scale_f) + shift_f
        fed: Tensor = gain_f * self.ffn(h)
        return x_BLC + fed
