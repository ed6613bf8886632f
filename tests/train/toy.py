"""Small tasks for tests of the loop, and a program that trains one: `python -m tests.train.toy TASK FOLDER CONFIG`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nextscale.data.crops import Crops
from nextscale.train.config import CodesConfig, LoopConfig
from nextscale.train.distributed import end, is_sharded, positions, rank
from nextscale.train.loop import Task, decay_groups, train
from nextscale.train.tasks.transformer import CodesTask
from tests.conftest import random_model

EXAMPLES = Path(__file__).parents[2] / "examples"


class Net(nn.Module):
    """Blocks between two layers, never run by a forward of its own; one layer is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2))
        self.last = nn.Linear(8, 2)
        self.idle = nn.Linear(3, 3)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)

    def checkpoint_units(self) -> list[nn.Module]:
        return list(self.blocks)

    def answer(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.last(x)
        return out


class Toy:
    """Learn a frozen layer's answers to numbers that are drawn by position; counts the samples it has seen."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = Net()
        self.model: nn.Module = self.net
        self.seen = 0
        self.drawn: list[int] = []

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        return decay_groups(self.model.named_parameters(), config.lr, config.weight_decay)

    def losses(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        self.drawn += positions(step, batch)
        self.seen += batch
        rows = [np.random.default_rng((3, place)).standard_normal(4) for place in positions(step, batch)]
        x = torch.from_numpy(np.stack(rows)).float()
        loss = (self.net.answer(x) - self.net.frozen(x)).square().mean()
        return loss, {"loss": float(loss.detach()), "size": float(x.abs().mean())}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Stopped(Exception):  # noqa: N818 - a stand-in for a kill
    """Raised by a task that `stop_after` has changed."""


def stop_after(steps: int, task: Task) -> None:
    """Let a task's training end in `Stopped` once so many steps are done and saved."""

    def after(step: int, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        del optimizer
        if step + 1 > steps:
            raise Stopped
        return {}

    task.after = after  # type: ignore[attr-defined]


def codes_task() -> Task:
    """The transformer's training on the small random model."""
    model = random_model()
    transformer = model.transformer.requires_grad_(True)
    config = CodesConfig(stages=1, sides=(64,), class_free=0.5)
    return CodesTask(transformer, model.tokenizer, {64: Crops([str(EXAMPLES)], 256)}, config)


def main() -> int:
    """Train, and leave the averaged weights, the task's own state and whether its weights are sharded in `final.pt`."""
    kind, folder, config = sys.argv[1:]
    task: Task = Toy() if kind == "toy" else codes_task()
    average = train(task, LoopConfig(**json.loads(config)), Path(folder))
    if rank() == 0:
        sharded = is_sharded(next(task.model.parameters()))
        final = {"average": average.state_dict(), "own": getattr(task, "state_dict", dict)(), "sharded": sharded}
        torch.save(final, Path(folder) / "final.pt")
    return end(0)


if __name__ == "__main__":
    sys.exit(main())
