"""DISTS (Ding et al. 2020): structure and texture compared in VGG16's features, and in the picture itself.

VGG16 with its maximum pools replaced by blurred root-mean-square ones, so that a texture that moves a little stays the
same texture. Means (texture) and correlations (structure) of every channel are weighted as people judged them.

Shapes: B images, C channels, h w feature positions, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.evaluate.metrics.lpips import backbone
from nextscale.evaluate.weights import MissingWeights, brought_along, damaged, first_file, load_file, user_folder

FILE = "dists.pt"
_WIDTHS = (3, 64, 128, 256, 512, 512)
_ENDS = (4, 9, 16, 23, 30)
"""Layers of VGG16 after which a stage's features are taken: each begins with a pool, but for the first."""
_SMALL = 1e-6
"""Keeps quotients of flat features finite."""


class Dists(nn.Module):
    """forward(a, b) with B x 3 x H x W images in [0, 1] -> Tensor[B]: 0 for equal images, at most 1."""

    mean: Tensor
    deviation: Tensor
    blur: Tensor
    texture: Tensor
    structure: Tensor

    def __init__(self, *, download: bool = False) -> None:
        """
        Args:
            download: fetch VGG16's official weights where they are nowhere.

        Raises:
            MissingWeights: the weights are nowhere, or damaged.
        """
        super().__init__()
        texture, structure = _channel_weights()
        self.features = backbone("vgg", download=download)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("blur", torch.outer(row, row), persistent=False)
        self.register_buffer("texture", texture, persistent=False)
        self.register_buffer("structure", structure, persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of each pair."""
        textures, structures = [], []
        for x_BChw, y_BChw in zip(self._stages(a), self._stages(b), strict=True):
            x, y = x_BChw.flatten(2), y_BChw.flatten(2)
            x_mean, y_mean = x.mean(2), y.mean(2)
            x_spread, y_spread = x.var(2, correction=0), y.var(2, correction=0)
            together = (x * y).mean(2) - x_mean * y_mean
            textures.append((2 * x_mean * y_mean + _SMALL) / (x_mean.square() + y_mean.square() + _SMALL))
            structures.append((2 * together + _SMALL) / (x_spread + y_spread + _SMALL))
        likeness = torch.cat(textures, 1) * self.texture + torch.cat(structures, 1) * self.structure
        return 1 - likeness.sum(1)

    def _stages(self, image_BCHW: Tensor) -> list[Tensor]:
        x = (image_BCHW - self.mean) / self.deviation
        stages = [image_BCHW]
        for number, layer in enumerate(self.features, 1):
            x = self._pool(x) if isinstance(layer, nn.MaxPool2d) else layer(x)
            if number in _ENDS:
                stages.append(x)
        return stages

    def _pool(self, x: Tensor) -> Tensor:
        """The blurred root mean square at every second position."""
        kernel = self.blur.expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _channel_weights() -> tuple[Tensor, Tensor]:
    """Of textures and of structures, one number per channel; all together they are 1."""
    file = first_file([user_folder() / FILE, *_shipped()])
    if file is None:
        raise MissingWeights(
            "DISTS needs the weights of its channels: run `pip install torchmetrics`, which brings them, or put them "
            f"as {FILE} into the folder named by NEXTSCALE_WEIGHTS"
        )
    state = load_file(file)
    try:
        texture, structure = (state[name].float().flatten() for name in ("alpha", "beta"))
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(file) from error
    if not len(texture) == len(structure) == sum(_WIDTHS):
        raise damaged(file)
    total = texture.sum() + structure.sum()
    return texture / total, structure / total


def _shipped() -> list[Path]:
    """Where packages bring the file along."""
    return [
        *brought_along("torchmetrics", "functional/image/dists_models/weights.pt"),
        *brought_along("DISTS_pytorch", "weights.pt"),
    ]
