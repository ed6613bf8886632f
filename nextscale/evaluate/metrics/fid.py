"""FID (Heusel et al. 2017): the distance between two sets of pictures in the features of the Inception it was made for.

That network is the one of TensorFlow's 2015-12-05 release: its average pools leave the padding out, its last block
pools by maximum, and it knows 1008 classes. torchvision's Inception differs in all three and gives other numbers.

Shapes: B or N images, D features, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import NextScaleError
from nextscale.evaluate.weights import load_into, official_file

_URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
_SIDE = 299
_NUM_CLASSES = 1008
_NUM_FEATURES = 2048


# --- the distance -----------------------------------------------------------------------------------------------------


class Gaussian:
    """Mean and covariance of features that come in batches, in float64; the order of the batches does not matter."""

    def __init__(self) -> None:
        self.count = 0
        self._mean_D = torch.zeros(0)
        self._scatter_DD = torch.zeros(0)

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Take in N x D features, one row for each picture."""
        if features.ndim != 2:
            raise ValueError(f"expected N x D features, got {tuple(features.shape)}")
        x_ND = features.double()
        num_new = len(x_ND)
        if num_new == 0:
            return
        if self.count == 0:
            self._mean_D = x_ND.new_zeros(x_ND.shape[1])
            self._scatter_DD = x_ND.new_zeros(x_ND.shape[1], x_ND.shape[1])
        total = self.count + num_new
        mean_D = x_ND.mean(dim=0)
        centered_ND = x_ND - mean_D
        moved_D = mean_D - self._mean_D
        # Two groups' squares about their own means, and what lies between the means (Chan et al. 1979).
        between = self.count * num_new / total
        self._scatter_DD += centered_ND.T @ centered_ND + between * torch.outer(moved_D, moved_D)
        self._mean_D = self._mean_D + moved_D * (num_new / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Tensor[D] in float64.

        Raises:
            NextScaleError: fewer than two pictures.
        """
        self._needs_two()
        return self._mean_D

    @property
    def covariance(self) -> Tensor:
        """Tensor[D x D] in float64, over N - 1.

        Raises:
            NextScaleError: fewer than two pictures.
        """
        self._needs_two()
        return self._scatter_DD / (self.count - 1)

    def _needs_two(self) -> None:
        if self.count < 2:
            raise NextScaleError(
                f"FID needs at least two pictures in each set, got {self.count}: add some or leave it out"
            )


def frechet(a: Gaussian, b: Gaussian) -> float:
    """The squared Frechet distance |m_a - m_b|^2 + tr(A + B - 2 (AB)^(1/2)); zero for equal sets, never negative.

    Raises:
        NextScaleError: fewer than two pictures in one of them.
    """
    apart = (a.mean - b.mean).square().sum()
    # With A = R R' and B = S S', the trace of (AB)^(1/2) is the sum of the singular values of R'S. No root is taken
    # of a product that is singular, as it is whenever there are fewer pictures than features.
    shared = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    distance = apart + a.covariance.trace() + b.covariance.trace() - 2 * shared
    return max(float(distance), 0.0)


def _root(covariance_DD: Tensor) -> Tensor:
    """R of D x rank with R R' = the covariance."""
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    # Below this the values are rounding; their roots would not be small.
    kept = values_D > values_D[-1] * len(values_D) * torch.finfo(values_D.dtype).eps
    root: Tensor = vectors_DD[:, kept] * values_D[kept].sqrt()
    return root


# --- the network ------------------------------------------------------------------------------------------------------


class Inception(nn.Module):
    """FID's features: forward(B x 3 x H x W in [0, 1]) -> B x 2048 in float32. Frozen.

    Its state has the names of the official file, pt_inception-2015-12-05-6726825d.pth.

    Raises:
        MissingWeights: that file is not found and cannot be downloaded, or is damaged.
    """

    def __init__(self, *, download: bool = False) -> None:
        """
        Args:
            download: fetch the official weights where they are nowhere.

        Raises:
            MissingWeights: they are nowhere, or damaged.
        """
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, padded=False)
        self.Mixed_5b = _Wide(192, 32)
        self.Mixed_5c = _Wide(256, 64)
        self.Mixed_5d = _Wide(288, 64)
        self.Mixed_6a = _Shrink(288)
        self.Mixed_6b = _Crossed(128)
        self.Mixed_6c = _Crossed(160)
        self.Mixed_6d = _Crossed(160)
        self.Mixed_6e = _Crossed(192)
        self.Mixed_7a = _ShrinkCrossed(768)
        self.Mixed_7b = _Forked(1280, pool=_mean_pool)
        self.Mixed_7c = _Forked(2048, pool=_max_pool)
        # FID stops before the classes; the file has them.
        self.fc = nn.Linear(_NUM_FEATURES, _NUM_CLASSES)
        load_into(self, official_file(_URL, fetch=download))
        self.requires_grad_(False).eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """The mean over positions of the last block, B x 2048."""
        x = F.interpolate(image_BCHW.float(), size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
        x = self.Conv2d_1a_3x3(2 * x - 1)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7a(x)
        x = self.Mixed_7c(self.Mixed_7b(x))
        features: Tensor = x.mean(dim=(2, 3))
        return features


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _Conv(nn.Module):
    """Convolution, batch norm and ReLU. The size stays, unless there is a stride or the padding is left out."""

    def __init__(
        self, width: int, out: int, kernel: int | tuple[int, int], *, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        height, across = (kernel, kernel) if isinstance(kernel, int) else kernel
        pads = (height // 2, across // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(width, out, (height, across), stride, pads, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        normal: Tensor = self.bn(self.conv(x))
        return F.relu(normal)


class _Wide(nn.Module):
    """The blocks at 35 x 35: 1 x 1, 5 x 5, twice 3 x 3, and a pool, side by side."""

    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(width, 64, 1)
        self.branch5x5_1 = _Conv(width, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5)
        self.branch3x3dbl_1 = _Conv(width, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3)
        self.branch_pool = _Conv(width, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, twice, self.branch_pool(_mean_pool(x))], dim=1)


class _Shrink(nn.Module):
    """From 35 x 35 to 17 x 17: 3 x 3, twice 3 x 3, and a pool."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(width, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(width, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, F.max_pool2d(x, 3, stride=2)], dim=1)


class _Crossed(nn.Module):
    """The blocks at 17 x 17: 1 x 1, 7 x 7 as a row and a column, that twice, and a pool."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, inner, 1)
        self.branch7x7_2 = _Conv(inner, inner, row)
        self.branch7x7_3 = _Conv(inner, 192, column)
        self.branch7x7dbl_1 = _Conv(768, inner, 1)
        self.branch7x7dbl_2 = _Conv(inner, inner, column)
        self.branch7x7dbl_3 = _Conv(inner, inner, row)
        self.branch7x7dbl_4 = _Conv(inner, inner, column)
        self.branch7x7dbl_5 = _Conv(inner, 192, row)
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_mean_pool(x))], dim=1)


class _ShrinkCrossed(nn.Module):
    """From 17 x 17 to 8 x 8: 3 x 3, 7 x 7 as a row and a column before 3 x 3, and a pool."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(width, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(width, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        crossed = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([three, self.branch7x7x3_4(crossed), F.max_pool2d(x, 3, stride=2)], dim=1)


class _Forked(nn.Module):
    """The blocks at 8 x 8: 1 x 1, a row beside a column, that after 3 x 3, and a pool."""

    def __init__(self, width: int, *, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.pool = pool
        self.branch1x1 = _Conv(width, 320, 1)
        self.branch3x3_1 = _Conv(width, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, row)
        self.branch3x3_2b = _Conv(384, 384, column)
        self.branch3x3dbl_1 = _Conv(width, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3)
        self.branch3x3dbl_3a = _Conv(384, 384, row)
        self.branch3x3dbl_3b = _Conv(384, 384, column)
        self.branch_pool = _Conv(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        forks = [self.branch3x3_2a(once), self.branch3x3_2b(once)]
        forks += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(self.pool(x))], dim=1)
