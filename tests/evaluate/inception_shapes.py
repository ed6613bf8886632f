"""The tensors of FID's official file, pt_inception-2015-12-05-6726825d.pth, and random ones in their place."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# Block: the convolutions in it, each followed by its kernel's shape.
CONVOLUTIONS = """
Conv2d_1a_3x3: 32x3x3x3
Conv2d_2a_3x3: 32x32x3x3
Conv2d_2b_3x3: 64x32x3x3
Conv2d_3b_1x1: 80x64x1x1
Conv2d_4a_3x3: 192x80x3x3
Mixed_5b: branch1x1 64x192x1x1 branch5x5_1 48x192x1x1 branch5x5_2 64x48x5x5 branch3x3dbl_1 64x192x1x1
    branch3x3dbl_2 96x64x3x3 branch3x3dbl_3 96x96x3x3 branch_pool 32x192x1x1
Mixed_5c: branch1x1 64x256x1x1 branch5x5_1 48x256x1x1 branch5x5_2 64x48x5x5 branch3x3dbl_1 64x256x1x1
    branch3x3dbl_2 96x64x3x3 branch3x3dbl_3 96x96x3x3 branch_pool 64x256x1x1
Mixed_5d: branch1x1 64x288x1x1 branch5x5_1 48x288x1x1 branch5x5_2 64x48x5x5 branch3x3dbl_1 64x288x1x1
    branch3x3dbl_2 96x64x3x3 branch3x3dbl_3 96x96x3x3 branch_pool 64x288x1x1
Mixed_6a: branch3x3 384x288x3x3 branch3x3dbl_1 64x288x1x1 branch3x3dbl_2 96x64x3x3 branch3x3dbl_3 96x96x3x3
Mixed_6b: branch1x1 192x768x1x1 branch7x7_1 128x768x1x1 branch7x7_2 128x128x1x7 branch7x7_3 192x128x7x1
    branch7x7dbl_1 128x768x1x1 branch7x7dbl_2 128x128x7x1 branch7x7dbl_3 128x128x1x7 branch7x7dbl_4
    128x128x7x1 branch7x7dbl_5 192x128x1x7 branch_pool 192x768x1x1
Mixed_6c: branch1x1 192x768x1x1 branch7x7_1 160x768x1x1 branch7x7_2 160x160x1x7 branch7x7_3 192x160x7x1
    branch7x7dbl_1 160x768x1x1 branch7x7dbl_2 160x160x7x1 branch7x7dbl_3 160x160x1x7 branch7x7dbl_4
    160x160x7x1 branch7x7dbl_5 192x160x1x7 branch_pool 192x768x1x1
Mixed_6d: branch1x1 192x768x1x1 branch7x7_1 160x768x1x1 branch7x7_2 160x160x1x7 branch7x7_3 192x160x7x1
    branch7x7dbl_1 160x768x1x1 branch7x7dbl_2 160x160x7x1 branch7x7dbl_3 160x160x1x7 branch7x7dbl_4
    160x160x7x1 branch7x7dbl_5 192x160x1x7 branch_pool 192x768x1x1
Mixed_6e: branch1x1 192x768x1x1 branch7x7_1 192x768x1x1 branch7x7_2 192x192x1x7 branch7x7_3 192x192x7x1
    branch7x7dbl_1 192x768x1x1 branch7x7dbl_2 192x192x7x1 branch7x7dbl_3 192x192x1x7 branch7x7dbl_4
    192x192x7x1 branch7x7dbl_5 192x192x1x7 branch_pool 192x768x1x1
Mixed_7a: branch3x3_1 192x768x1x1 branch3x3_2 320x192x3x3 branch7x7x3_1 192x768x1x1 branch7x7x3_2 192x192x1x7
    branch7x7x3_3 192x192x7x1 branch7x7x3_4 192x192x3x3
Mixed_7b: branch1x1 320x1280x1x1 branch3x3_1 384x1280x1x1 branch3x3_2a 384x384x1x3 branch3x3_2b 384x384x3x1
    branch3x3dbl_1 448x1280x1x1 branch3x3dbl_2 384x448x3x3 branch3x3dbl_3a 384x384x1x3 branch3x3dbl_3b
    384x384x3x1 branch_pool 192x1280x1x1
Mixed_7c: branch1x1 320x2048x1x1 branch3x3_1 384x2048x1x1 branch3x3_2a 384x384x1x3 branch3x3_2b 384x384x3x1
    branch3x3dbl_1 448x2048x1x1 branch3x3dbl_2 384x448x3x3 branch3x3dbl_3a 384x384x1x3 branch3x3dbl_3b
    384x384x3x1 branch_pool 192x2048x1x1
"""


def convolutions() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and kernel shape of each convolution, as in Mixed_5b.branch1x1."""
    block, branch = "", ""
    for word in CONVOLUTIONS.split():
        if word.endswith(":"):
            block, branch = word[:-1], ""
        elif word.startswith("branch"):
            branch = "." + word
        else:
            yield block + branch, tuple(int(side) for side in word.split("x"))


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the network; files older than BatchNorm's counter (num_batches_tracked) lack those."""
    found: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, kernel in convolutions():
        found[f"{name}.conv.weight"] = kernel
        found[f"{name}.bn.num_batches_tracked"] = ()
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.bn.{part}"] = kernel[:1]
    return found


def random_state() -> dict[str, Tensor]:
    """Random tensors in half precision, without BatchNorm's counters; the same on every machine."""
    rng = np.random.RandomState(0)
    state = {}
    for name, shape in sorted(shapes().items()):
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("conv.weight"):
            values = rng.randn(*shape) * math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith(("running_var", "bn.weight")):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.randn(*shape) * 0.1
        state[name] = torch.from_numpy(values).half()
    return state
