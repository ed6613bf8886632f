"""Distances in the features of trained networks: LPIPS for reporting, VGG19 activations for training.

The backbones are written out here, with torchvision's layer numbers so that its official weights load; torchvision
itself is never imported.

Shapes: B images, C channels, h w feature positions, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.evaluate.weights import MissingWeights as MissingWeights
from nextscale.evaluate.weights import brought_along, first_file, hub_folder, load_into, official_file, user_folder

LpipsNet = Literal["alex", "squeeze", "vgg"]

_OFFICIAL_URL = "https://download.pytorch.org/models/"


# --- LPIPS (Zhang et al. 2018, version 0.1) ---------------------------------------------------------------------------


class Lpips(nn.Module):
    """Learned perceptual distance: forward(a, b) with B x 3 x H x W images in [-1, 1] -> Tensor[B].

    Frozen, yet differentiable with respect to both images.
    """

    shift: Tensor
    deviation: Tensor

    def __init__(self, net: LpipsNet = "alex", *, download: bool = False) -> None:
        """
        Args:
            download: fetch the backbone's official weights where they are nowhere.

        Raises:
            MissingWeights: the weights are nowhere, or damaged.
        """
        super().__init__()
        spec = _BACKBONES[net]
        self.taps = spec.taps
        self.features = backbone(net, download=download)
        heads = [nn.Conv2d(width, 1, 1, bias=False) for width in spec.widths]
        self.heads = nn.ModuleList(heads)
        names = {f"{i}.weight": f"lin{i}.model.1.weight" for i in range(len(heads))}
        load_into(self.heads, _head_file(net), names=names)
        # ImageNet's mean and deviation, for images in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of each pair, Tensor[B]; zero for equal images."""
        distance_B = a.new_zeros(a.shape[0])
        for head, x_BChw, y_BChw in zip(self.heads, self._activations(a), self._activations(b), strict=True):
            difference = (_unit_length(x_BChw) - _unit_length(y_BChw)).square()
            distance_B = distance_B + head(difference).mean(dim=(1, 2, 3))
        return distance_B

    def _activations(self, image_BCHW: Tensor) -> list[Tensor]:
        x = (image_BCHW - self.shift) / self.deviation
        tapped = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                tapped.append(x)
        return tapped


def _unit_length(x_BChw: Tensor) -> Tensor:
    # The small term stands under the root: a position where every channel is zero then has a finite gradient.
    return x_BChw / (x_BChw.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()


# --- the normalized VGG19 ---------------------------------------------------------------------------------------------


class Vgg19Features(nn.Module):
    """VGG19 with each layer's mean activation near one: forward(B x 3 x H x W in [0, 1]) -> activations after ReLU.

    layers: which of conv1_1 conv1_2 conv2_1 conv2_2 conv3_1; the list comes in the network's order, and nothing
    deeper than the last wanted layer is computed. Frozen, yet differentiable with respect to the images.
    """

    FILE = "vgg19_normalised_relu3_1.pth"

    def __init__(self, layers: Sequence[str] = ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1")) -> None:
        super().__init__()
        if not layers or not set(layers) <= set(_VGG19):
            raise ValueError(f"layers must be some of {', '.join(_VGG19)}, got {tuple(layers)}")
        self.layers = frozenset(layers)
        self.to_bgr = nn.Conv2d(3, 3, 1)
        self.convs = nn.ModuleDict({name: nn.Conv2d(*widths, 3) for name, (_, widths) in _VGG19.items()})
        names = {"to_bgr.weight": "0.weight", "to_bgr.bias": "0.bias"}
        for name, (number, _) in _VGG19.items():
            names |= {f"convs.{name}.{part}": f"{number}.{part}" for part in ("weight", "bias")}
        file = first_file([user_folder() / self.FILE, hub_folder() / self.FILE])
        if file is None:
            raise MissingWeights(
                f"The VGG19 features need {self.FILE}, which has no official download: put it into the folder "
                "named by NEXTSCALE_WEIGHTS, or train without its losses: --restoration.feature 0 "
                "--restoration.adversarial 0, for a tokenizer --reconstruction.feature 0 --reconstruction.adversarial 0"
            )
        load_into(self, file, names=names)
        self.requires_grad_(False).eval()

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """The wanted activations, B x C x h x w each, shallow ones first."""
        x = self.to_bgr(image_BCHW)
        wanted: list[Tensor] = []
        for name, conv in self.convs.items():
            if name in ("conv2_1", "conv3_1"):
                x = F.max_pool2d(x, 2)
            x = F.relu(conv(F.pad(x, (1, 1, 1, 1), mode="reflect")))
            if name in self.layers:
                wanted.append(x)
            if len(wanted) == len(self.layers):
                break
        return wanted


# name -> (layer number in the file, channels in and out)
_VGG19 = {
    "conv1_1": (2, (3, 64)),
    "conv1_2": (5, (64, 64)),
    "conv2_1": (9, (64, 128)),
    "conv2_2": (12, (128, 128)),
    "conv3_1": (16, (128, 256)),
}


# --- backbones --------------------------------------------------------------------------------------------------------


class _Fire(nn.Module):
    """SqueezeNet's block: 1 x 1 down to `squeeze` channels, then 1 x 1 and 3 x 3 up, side by side."""

    def __init__(self, width: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


def _alex() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def _squeeze() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(64, 16, 64),
        _Fire(128, 16, 64),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(128, 32, 128),
        _Fire(256, 32, 128),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(256, 48, 192),
        _Fire(384, 48, 192),
        _Fire(384, 64, 256),
        _Fire(512, 64, 256),
    )


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for block, (num_convs, out) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
        if block > 0:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(num_convs):
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class _Backbone:
    """A network, the layers LPIPS reads (index and width), and the names its weights go by."""

    build: Callable[[], nn.Sequential]
    taps: tuple[int, ...]
    widths: tuple[int, ...]
    file: str
    official: str


_BACKBONES: Mapping[str, _Backbone] = {
    "alex": _Backbone(
        _alex, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), "alexnet_features.pth", "alexnet-owt-7be5be79.pth"
    ),
    "squeeze": _Backbone(
        _squeeze,
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        "squeezenet1_1_features.pth",
        "squeezenet1_1-b8a52dc0.pth",
    ),
    "vgg": _Backbone(_vgg16, (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), "vgg16_features.pth", "vgg16-397923af.pth"),
}


# --- files of weights -------------------------------------------------------------------------------------------------


def backbone(net: LpipsNet, *, download: bool = False) -> nn.Sequential:
    """The convolutional layers of a network, with its official weights.

    Raises:
        MissingWeights: these are nowhere, or damaged.
    """
    spec = _BACKBONES[net]
    features = spec.build()
    file = official_file(_OFFICIAL_URL + spec.official, also=[spec.file], fetch=download)
    load_into(features, file, prefix="features.")
    return features


def _head_file(net: str) -> Path:
    """The LPIPS linear layers: the user's folder, else those that an installed lpips or torchmetrics brings along."""
    shipped = [
        *brought_along("lpips", f"weights/v0.1/{net}.pth"),
        *brought_along("torchmetrics", f"functional/image/lpips_models/{net}.pth"),
    ]
    file = first_file([user_folder() / "lin" / f"{net}.pth", *shipped])
    if file is None:
        raise MissingWeights(
            f"LPIPS needs its linear layers lin/{net}.pth: put them into the folder named by NEXTSCALE_WEIGHTS, "
            "or run `pip install torchmetrics`, which brings them"
        )
    return file
