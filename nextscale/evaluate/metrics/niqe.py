"""NIQE (Mittal et al. 2013): how far the statistics of a picture are from those of clean photographs; less is better.

The numbers are those of BasicSR's calculate_niqe, which follows the authors' MATLAB: luma rounded to whole levels,
blocks of 96 x 96 without overlap, the second size by a halving that removes aliasing.

Shapes: B images, N blocks of one image, P pixels of a block, D features of a block (18 at each of the two sizes).
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.errors import NextScaleError
from nextscale.evaluate.metrics.psnr_ssim import luma
from nextscale.evaluate.weights import MissingWeights, damaged, first_file, hub_folder, user_folder

_FILE = "niqe_pris_params.npz"
_BLOCK = 96
_NUM_FEATURES = 36
# A block and itself moved round by these many rows and columns: neighbors across, below and on both diagonals.
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
# MATLAB's bicubic kernel stretched to half the size, at the eight pixels that an output pixel sees.
_HALVING = (-3 / 256, -9 / 256, 29 / 256, 111 / 256, 111 / 256, 29 / 256, -9 / 256, -3 / 256)


class Niqe:
    """The measure with the parameters of clean photographs that its authors published.

    Raises:
        MissingWeights: niqe_pris_params.npz is not found, or holds something else.
    """

    def __init__(self) -> None:
        file = first_file([user_folder() / _FILE, hub_folder() / _FILE])
        if file is None:
            raise MissingWeights(
                f"NIQE needs {_FILE}: put BasicSR's file of that name into the folder named by NEXTSCALE_WEIGHTS"
            )
        self._mean_D, self._covariance_DD, self._window = _read(file)
        # The shape parameter is looked up: of all these values, the one with the nearest ratio of moments.
        self._shapes = torch.arange(0.2, 10.001, 0.001, dtype=torch.float64)
        inverse = 1 / self._shapes
        ratios = torch.exp(2 * torch.lgamma(2 * inverse) - torch.lgamma(inverse) - torch.lgamma(3 * inverse))
        self._midpoints = (ratios[1:] + ratios[:-1]) / 2

    @torch.no_grad()
    def __call__(self, images: Tensor, *, border: int = 0) -> Tensor:
        """NIQE of each image, Tensor[B] in float64 on the images' device.

        images: B x 3 x H x W, RGB in [0, 1]. border: pixels left out on every side. NaN where fewer than two blocks
        have any texture, as in a blank picture.

        Raises:
            NextScaleError: an image is too small for two blocks of 96 x 96 pixels.
        """
        if images.ndim != 4 or images.shape[1] != 3 or border < 0:
            raise ValueError(f"expected B x 3 x H x W and a border from 0 up, got {tuple(images.shape)} and {border}")
        height, width = images.shape[-2:]
        rows, columns = (max(side - 2 * border, 0) // _BLOCK for side in (height, width))
        if rows * columns < 2:
            raise NextScaleError(
                f"NIQE needs room for two blocks of {_BLOCK} x {_BLOCK} pixels, got {width} x {height} "
                f"with a border of {border}: leave out this metric or take larger pictures"
            )
        down, right = slice(border, border + rows * _BLOCK), slice(border, border + columns * _BLOCK)
        # Through single precision, so that which way a level exactly between two whole ones goes is the reference's.
        level_BHW = (luma(images[..., down, right].double())[:, 0] / 255).float().mul(255).round()
        features = []
        for block in (_BLOCK, _BLOCK // 2):
            blocks = self._normalized(level_BHW).view(-1, rows, block, columns, block)
            features.append(self._features(blocks.transpose(2, 3).flatten(1, 2)))
            level_BHW = _halved(level_BHW)
        return torch.stack([self._distance(features_ND) for features_ND in torch.cat(features, dim=2)])

    def _normalized(self, level_BHW: Tensor) -> Tensor:
        """Each level less the mean around it, over the deviation around it.

        Levels and their mean are in single precision, as in the reference: a flat area is then exactly flat, and its
        blocks can be told from textured ones.
        """
        level_BHW = level_BHW.float().double()
        mean_BHW = self._blurred(level_BHW).float().double()
        deviation_BHW = (self._blurred(level_BHW.square()) - mean_BHW.square()).abs().sqrt()
        return (level_BHW - mean_BHW) / (deviation_BHW + 1)

    def _blurred(self, image_BHW: Tensor) -> Tensor:
        reach = self._window.numel() // 2
        height, width = image_BHW.shape[1:]
        padded = F.pad(image_BHW, (reach, reach, reach, reach), mode="replicate")
        taps = self._window.tolist()
        padded = sum((tap * padded[:, i : i + height] for i, tap in enumerate(taps)), start=padded.new_zeros(()))
        return sum((tap * padded[..., i : i + width] for i, tap in enumerate(taps)), start=padded.new_zeros(()))

    def _features(self, block_BNhw: Tensor) -> Tensor:
        """The 18 numbers of each block, B x N x 18."""
        shape, left, right = self._fit(block_BNhw)
        features = [shape, (left + right) / 2]
        for shift in _SHIFTS:
            shape, left, right = self._fit(block_BNhw * block_BNhw.roll(shift, dims=(2, 3)))
            mean = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
            features += [shape, mean, left, right]
        return torch.stack(features, dim=2)

    def _fit(self, block_BNhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An asymmetric generalized Gaussian by its moments: shape, left and right scale, B x N each.

        A block without a value on one side has NaN there and the smallest shape, as in the reference.
        """
        x_BNP = block_BNhw.flatten(2)
        square_BNP = x_BNP.square()
        left, right = (((square_BNP * side).sum(2) / side.sum(2)).sqrt() for side in (x_BNP < 0, x_BNP > 0))
        ratio = left / right
        moments = x_BNP.abs().mean(2).square() / square_BNP.mean(2)
        moments = moments * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()
        index = torch.bucketize(moments.nan_to_num(nan=0.0), self._midpoints.to(moments.device))
        shape = self._shapes.to(moments.device)[index]
        spread = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
        return shape, left * spread, right * spread

    def _distance(self, features_ND: Tensor) -> Tensor:
        """From one image's blocks to the clean photographs, a scalar."""
        complete_ND = features_ND[~features_ND.isnan().any(dim=1)]
        if len(complete_ND) < 2:
            return features_ND.new_tensor(torch.nan)
        difference_D = self._mean_D.to(features_ND.device) - features_ND.nanmean(dim=0)
        covariance_DD = (self._covariance_DD.to(features_ND.device) + complete_ND.T.cov()) / 2
        precision_DD: Tensor = torch.linalg.pinv(covariance_DD, hermitian=True)
        return (difference_D @ precision_DD @ difference_D).sqrt()


def _halved(image_BHW: Tensor) -> Tensor:
    """Half the size by MATLAB's imresize: bicubic without aliasing, the picture mirrored at its edges."""
    return _narrowed(_narrowed(image_BHW).mT).mT


def _narrowed(image_BHW: Tensor) -> Tensor:
    reach, width = len(_HALVING) // 2 - 1, image_BHW.shape[-1]
    ends = image_BHW[..., :reach].flip(-1), image_BHW[..., width - reach :].flip(-1)
    mirrored = torch.cat([ends[0], image_BHW, ends[1]], dim=-1).double()
    taps = enumerate(_HALVING)
    return sum((tap * mirrored[..., i : i + width - 1 : 2] for i, tap in taps), start=mirrored.new_zeros(()))


def _read(file: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Mean D and covariance D x D of clean photographs, and one axis of the separable window that sums to one."""
    try:
        with np.load(file, allow_pickle=False) as parameters:
            mean_D, covariance_DD, window = (
                torch.from_numpy(np.asarray(parameters[name], dtype=np.float64)).squeeze()
                for name in ("mu_pris_param", "cov_pris_param", "gaussian_window")
            )
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise damaged(file) from error
    if mean_D.shape != (_NUM_FEATURES,) or covariance_DD.shape != (_NUM_FEATURES, _NUM_FEATURES) or window.ndim != 2:
        raise damaged(file)
    return mean_D, covariance_DD, window.sum(dim=0)
