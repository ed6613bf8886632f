"""A critic that learns to tell photographs from generated pictures, and the generator's loss against it.

It reads the activations of a trained network rather than pixels (Sauer et al. 2021, "Projected GANs converge
faster"), which the perceptual terms compute anyway: only a few small heads are left to learn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nextscale.train.distributed import any_process, summed, world

CRITIC = "critic.safetensors"
"""File beside a restorer's weights: the critic that it was trained against, which a later run continues."""


class Critic(nn.Module):
    """Patch logits from each of several activation maps; above 0 means a photograph.

    Without normalization and unbounded: spectral norms kept it from seeing faint ripples at all (LOG.md).
    """

    def __init__(self, channels: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c, width, 3, stride=2, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(2 * width, 1, 3, padding=1),
            )
            for c in channels
        )

    def forward(self, activations: list[Tensor]) -> Tensor:
        """Activation maps B C h w, h and w of each its own -> logits B N."""
        return torch.cat([head(x).float().flatten(1) for head, x in zip(self.heads, activations, strict=True)], dim=1)


class Adversary:
    """One critic per stage, and their optimizer.

    Args:
        stages: how many stages are judged.
        channels: of each activation map.
        lr: the critics' constant learning rate.
        by_accuracy: scale the generator's loss by the critic's accuracy: 0 where half of its answers are right, 1 where
            all are.
    """

    def __init__(
        self, stages: int, channels: tuple[int, ...], lr: float, device: torch.device, *, by_accuracy: bool = False
    ) -> None:
        self.by_accuracy = by_accuracy
        self.accuracies = [0.5] * stages
        # Heads start alike in every process and run, whatever was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.critics = nn.ModuleList(Critic(channels) for _ in range(stages)).to(device)
        self.waiting: list[tuple[int, list[Tensor], list[Tensor]]] = []
        """Stage and activations of pictures and photographs that the critics have yet to learn from."""
        self.optimizer = torch.optim.AdamW(self.critics.parameters(), lr=lr, betas=(0.5, 0.99), weight_decay=0.0)

    def generator_loss(self, stage: int, activations: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of generated pictures against a stage's critic, and -log p(photograph) for the log.

        The loss's gradient at the activations is rescaled to the norm that a mean absolute difference of activations
        has, so that the weight of this term means the same however confident the critic is.
        """
        apart = [x.detach().requires_grad_() for x in activations]
        with torch.enable_grad():
            value = F.softplus(-self.critics[stage](apart)).mean()
            slopes = torch.autograd.grad(value, apart)
        strength = max(0.0, 2 * self.accuracies[stage] - 1) if self.by_accuracy else 1.0
        return pull(slopes, activations, strength), value.detach()

    def keep(self, stage: int, made: list[Tensor], real: list[Tensor]) -> None:
        """Keep activations of generated pictures and photographs for the critics' next step."""
        self.waiting.append((stage, [x.detach() for x in made], [x.detach() for x in real]))

    def discriminator_loss(self, stage: int, made: list[Tensor], real: list[Tensor]) -> tuple[Tensor, float]:
        """A critic's cross-entropy on generated pictures' and photographs' activations, and its accuracy."""
        on_made, on_real = (self.critics[stage](maps) for maps in (made, real))
        loss = F.softplus(on_made).mean() + F.softplus(-on_real).mean()
        return loss, float(((on_made < 0).float().mean() + (on_real > 0).float().mean()) / 2)

    def step(self) -> dict[str, float]:
        """One step of the critics on the kept activations, gradients averaged over the processes; numbers to log."""
        seen = Counter(stage for stage, *_ in self.waiting)
        numbers: dict[str, float] = {}
        for stage, made, real in self.waiting:
            with torch.enable_grad():
                loss, accuracy = self.discriminator_loss(stage, made, real)
                (loss / seen[stage]).backward()  # type: ignore[no-untyped-call]
            self.accuracies[stage] += 0.02 * (accuracy - self.accuracies[stage])
            for name, value in (("d_loss", float(loss.detach())), ("d_accuracy", accuracy)):
                key = f"{name}_{stage + 1}"
                numbers[key] = numbers.get(key, 0.0) + value / seen[stage]
        self.waiting = []
        if world() > 1:
            self._share(seen)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return numbers

    def _share(self, seen: Counter[int]) -> None:
        """Average gradients and accuracies over the processes; the gradient of one that saw nothing of a stage is zero.

        A batch of smooth ramps shows no stage anything: each process must still enter the sums that another one enters.
        """
        anywhere = any_process(*(seen[stage] > 0 for stage in range(len(self.critics))))
        for critic in (critic for critic, judged in zip(self.critics, anywhere, strict=True) if judged):
            for parameter in critic.parameters():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = summed(gradient) / world()
        # With its own accuracy each process would weigh one and the same critic's loss differently.
        self.accuracies = (summed(torch.tensor(self.accuracies)) / world()).tolist()

    def state_dict(self) -> dict[str, Any]:
        """The critics, their optimizer and their accuracies."""
        return {
            "critics": self.critics.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "accuracies": list(self.accuracies),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.critics.load_state_dict(state["critics"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.accuracies = list(state.get("accuracies", self.accuracies))


def pull(slopes: Sequence[Tensor], activations: Sequence[Tensor], strength: float = 1.0) -> Tensor:
    """A term whose gradient at the activations points along `slopes`, however large these are.

    Args:
        slopes: gradients of a loss, of the activations' shapes.
        strength: norm of the term's gradient, relative to that of a mean absolute difference of activations.
    """
    norm = torch.stack([g.float().square().sum() for g in slopes]).sum().sqrt()
    usual = sum(1 / x.numel() for x in activations) ** 0.5 / len(activations) * strength
    towards = [(g * x).float().sum() for g, x in zip(slopes, activations, strict=True)]
    term: Tensor = torch.stack(towards).sum() * (usual / norm.clamp(min=1e-12))
    return term


def save_critic(adversary: Adversary | None, path: Path) -> None:
    """Write the critics and their accuracies to a file, if there are critics."""
    if adversary is not None:
        state = {name: value.contiguous() for name, value in adversary.critics.state_dict().items()}
        save_file(state | {"accuracies": torch.tensor(adversary.accuracies)}, path)


def load_critic(adversary: Adversary | None, path: Path) -> None:
    """Continue from the critics in a file, if there are critics and the file exists."""
    if adversary is not None and path.exists():
        state = load_file(path)
        adversary.accuracies = state.pop("accuracies").tolist()
        adversary.critics.load_state_dict(state)
