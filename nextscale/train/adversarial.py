"""A critic that learns to tell photographs from the decoders' pictures, and what the decoders gain by deceiving it.

It reads the activations of a trained network rather than pixels (Sauer et al. 2021, "Projected GANs converge
faster"), which the perceptual terms compute anyway: what is left to learn are a few small heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.train.distributed import summed, world


class Critic(nn.Module):
    """Patch logits from each of several activation maps; above 0 means a photograph.

    Without normalisation and unbounded: spectral norms kept it from seeing faint ripples at all (LOG.md).
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
    """One critic per stage, and their optimiser.

    Args:
        stages: how many stages are judged.
        channels: of each activation map.
        lr: the critics' constant learning rate.
        by_accuracy: scale what is gained by deceiving by how much better than a guess the critic is: from 0 where half
            of its answers are right to 1 where all are.
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
        self.optimiser = torch.optim.AdamW(self.critics.parameters(), lr=lr, betas=(0.5, 0.99), weight_decay=0.0)

    def deceive(self, stage: int, activations: list[Tensor]) -> tuple[Tensor, float]:
        """A term whose gradient leads the activations to what the critic takes for a photograph's, and -log p of that.

        The gradient at the activations has the norm of that of their mean absolute difference to others, as a
        perceptual term takes it: a critic may then become as sure as it likes.
        """
        apart = [x.detach().requires_grad_() for x in activations]
        with torch.enable_grad():
            value = F.softplus(-self.critics[stage](apart)).mean()
            slopes = torch.autograd.grad(value, apart)
        norm = torch.stack([g.float().square().sum() for g in slopes]).sum().sqrt()
        usual = sum(1 / x.numel() for x in activations) ** 0.5 / len(activations)
        if self.by_accuracy:
            usual = usual * max(0.0, 2 * self.accuracies[stage] - 1)
        towards = [(g * x).float().sum() for g, x in zip(slopes, activations, strict=True)]
        return torch.stack(towards).sum() * (usual / norm.clamp(min=1e-12)), float(value.detach())

    def learn(self, stage: int, made: list[Tensor], real: list[Tensor]) -> dict[str, float]:
        """Add to the critic's gradients those of telling made pictures' activations and photographs' apart."""
        critic = self.critics[stage]
        with torch.enable_grad():
            given, wanted = (critic([x.detach() for x in maps]) for maps in (made, real))
            loss = F.softplus(given).mean() + F.softplus(-wanted).mean()
            loss.backward()  # type: ignore[no-untyped-call]
        right = ((given < 0).float().mean() + (wanted > 0).float().mean()) / 2
        self.accuracies[stage] += 0.02 * (float(right) - self.accuracies[stage])
        return {f"critic_{stage + 1}": float(loss.detach()), f"told_{stage + 1}": float(right)}

    def step(self) -> None:
        """One step of the critics, on the mean of all processes' gradients."""
        for parameter in self.critics.parameters():
            if parameter.grad is not None and world() > 1:
                parameter.grad.copy_(summed(parameter.grad) / world())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "critics": self.critics.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "accuracies": list(self.accuracies),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.critics.load_state_dict(state["critics"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.accuracies = list(state.get("accuracies", self.accuracies))
