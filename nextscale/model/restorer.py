"""The restorer: a plain convolutional network at the input's resolution, with a head per factor.

It is SRVGGNetCompact (Wang et al., Real-ESRGAN, realesrgan/archs/srvgg_arch.py), whose published weights load, with
two things added: a fourth input plane that says how much noise to remove, and heads for the factors below the largest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.model.config import RestorerConfig

PLANE = 4.0
"""Value of the denoise plane where all noise stays."""


class Restorer(nn.Module):
    """A degraded image B 3 h w -> its features B C h w, and from them a restored image at each factor.

    The residual of each head is added to the input, repeated to the output's size.
    """

    def __init__(self, config: RestorerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        layers: list[nn.Module] = []
        for i in range(config.convs + 1):
            layers += [nn.Conv2d((4 if config.denoise else 3) if i == 0 else width, width, 3, padding=1)]
            layers += [nn.PReLU(width)]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Conv2d(width, 3 * factor**2, 3, padding=1) for factor in config.factors)

    def checkpoint_units(self) -> list[nn.Module]:
        """What activation checkpointing runs again: the body as a whole, whose layers keep their inputs anyway."""
        return [self.body]

    def features(self, images: Tensor, denoise: Tensor | float = 1.0) -> Tensor:
        """What the heads read: B C h w.

        Args:
            images: B 3 h w in [-1, 1].
            denoise: share of the noise to remove, in [0, 1]: one number, or one per image (B).
        """
        x = images / 2 + 0.5
        if self.config.denoise:
            # Zero where all noise goes, the default: the published network's own behaviour is never disturbed by the
            # plane. Several units high, so that its few weights learn as fast as the rest.
            plane = PLANE * (1 - torch.as_tensor(denoise, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1))
            x = torch.cat([x, plane.expand(len(x), 1, *x.shape[-2:])], dim=1)
        out: Tensor = self.body(x)
        return out

    def draft(self, features: Tensor, images: Tensor, factor: int) -> Tensor:
        """The restored image at one factor: B 3 factor*h factor*w, about [-1, 1], float32, not clamped."""
        return add_residual(images, self.heads[self.config.factors.index(factor)](features), factor)

    def forward(self, images: Tensor, denoise: Tensor | float = 1.0) -> list[Tensor]:
        """The restored images at every factor, in the order of the config."""
        features = self.features(images, denoise)
        return [self.draft(features, images, factor) for factor in self.config.factors]


def add_residual(images: Tensor, residual: Tensor, factor: int) -> Tensor:
    """A head's output B 3*factor^2 h w, added to the images B 3 h w repeated to its size: B 3 H W, float32."""
    base = F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images
    # In float32: 16 bits would band smooth gradients.
    return base.float() + 2 * F.pixel_shuffle(residual.float(), factor)


@torch.no_grad()
def load_compact(restorer: Restorer, state: dict[str, Tensor]) -> None:
    """Load SRVGGNetCompact's weights (`body.N.*`, one head for one factor).

    The heads of the other factors become the exact area means of its outputs; the denoise plane has no effect at first.

    Raises:
        KeyError, RuntimeError: a tensor is missing or of another shape.
        ValueError: the file's factor is not a multiple of all others.
    """
    config = restorer.config
    last = 2 * (config.convs + 1)
    head = {part: state[f"body.{last}.{part}"].float() for part in ("weight", "bias")}
    whole = round((len(head["bias"]) / 3) ** 0.5)
    if any(whole % factor for factor in config.factors):
        raise ValueError(f"the file enlarges by {whole}, the restorer by {config.factors}")
    own = restorer.state_dict()
    names = [name for name in own if name.startswith("body.")]
    unknown = set(state) - set(names) - {f"body.{last}.weight", f"body.{last}.bias"}
    if unknown:
        raise KeyError(f"unknown tensor {min(unknown)}")
    for name in names:
        given = state[name].float()
        if name == "body.0.weight" and config.denoise:
            given = F.pad(given, (0, 0, 0, 0, 0, 1))
        own[name] = given
    for number, factor in enumerate(config.factors):
        for part, value in head.items():
            own[f"heads.{number}.{part}"] = area_head(value, whole, factor)
    restorer.load_state_dict(own)


def area_head(value: Tensor, whole: int, factor: int) -> Tensor:
    """Weight or bias (3 whole^2 rows) of a head at `factor` that gives the area mean of another's at `whole`."""
    cell = whole // factor
    places = value.view(3, factor, cell, factor, cell, *value.shape[1:])
    return places.mean(dim=(2, 4)).flatten(0, 2)
