"""VAR's official tiny checkpoint around our blocks: its own start vectors and position table, in tests only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nextscale.model.attention import Cache
from nextscale.model.config import TransformerConfig
from nextscale.model.convert import _BLOCK, _HEAD, read_state
from nextscale.model.transformer import Stack

OfficialState = dict[str, Tensor]


def official_state(fixtures: Path) -> OfficialState:
    return read_state(fixtures / "var_tiny.pth", "transformer")


def official_stack(state: OfficialState) -> Stack:
    """Our blocks and head with the official weights."""
    stack = Stack(TransformerConfig(depth=2, width=128, heads=2), 64)
    own = {f"blocks.{i}.{ours}": state[f"blocks.{i}.{theirs}"] for i in range(2) for theirs, ours in _BLOCK.items()}
    own |= {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"] for theirs, ours in _HEAD.items() for kind in ("weight", "bias")
    }
    stack.load_state_dict(own)
    return stack.eval()


@dataclass(frozen=True)
class Labels:
    """VAR's condition: a class, or 10 for none."""

    labels: Tensor

    def class_free(self) -> Labels:
        return Labels(torch.full_like(self.labels, 10))


class OfficialModel:
    """What the sampler asks of a model, answered with VAR's embeddings."""

    def __init__(self, state: OfficialState) -> None:
        self.state = state
        self.stack = official_stack(state)

    def start(self, condition: Labels, /) -> Tensor:
        state = self.state
        first = state["class_emb.weight"][condition.labels][:, None] + state["pos_start"]
        return first + state["lvl_embed.weight"][0] + state["pos_1LC"][:, :1]

    def embed(self, input_map: Tensor, step: int, /) -> Tensor:
        state = self.state
        begin = sum((k + 1) ** 2 for k in range(step))
        words = input_map.flatten(2).transpose(1, 2) @ state["word_embed.weight"].T + state["word_embed.bias"]
        place = state["pos_1LC"][:, begin : begin + (step + 1) ** 2]
        return words + state["lvl_embed.weight"][step] + place

    def logits(self, segments: Sequence[Tensor], condition: Labels, cache: Cache | None, /) -> Tensor:
        vector = self.state["class_emb.weight"][condition.labels]
        out: Tensor = self.stack(torch.cat(list(segments), dim=1), vector, [s.shape[1] for s in segments], cache)
        return out
