"""Fingerprints of the shipped model's results and of one training step of each task: a refactor must leave them equal.

    OMP_NUM_THREADS=1 python benchmarks/equality.py > before.txt

Names of cases after the script: only those.
Each line is a name and the sha256 of codes, of a picture's pixels, or of a training step's numbers and gradients, in
float32 on one thread. The trainings need the weights of LPIPS and VGG19 (`NEXTSCALE_WEIGHTS`).
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nextscale.data.crops import Crops
from nextscale.image import Picture
from nextscale.train.config import (
    CodebookConfig,
    CodesConfig,
    FusionTrainingConfig,
    ReconstructionConfig,
    RestorationConfig,
)
from nextscale.train.loop import Task, as_floats
from nextscale.train.stream import Samples
from nextscale.train.tasks.codebook import CodebookTask
from nextscale.train.tasks.fusion import FusionTask
from nextscale.train.tasks.reconstruction import ReconstructionTask
from nextscale.train.tasks.restorer import RestorerTask
from nextscale.train.tasks.transformer import CodesTask
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions

EXAMPLES = Path(__file__).parents[1] / "examples"


def crop(name: str, side: int) -> Picture:
    """The middle of an example."""
    with Image.open(EXAMPLES / name) as image:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return Picture(np.asarray(image.convert("RGB").crop((left, top, left + side, top + side))))


def digest(*arrays: Any) -> str:
    """The sha256 of arrays, their types and shapes."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def fingerprints(model: NextScale, name: str, picture: Picture, options: UpscaleOptions) -> list[str]:
    """One line per result of a picture."""
    result = model.upscale(picture, options)
    lines = [
        f"{name} codes {digest(*(ids.numpy() for _, codes in sorted(result.codes.items()) for ids in codes.steps))}"
    ]
    for factor, whole in result.images.items():
        lines.append(f"{name} x{factor:g} {digest(*(a for a in (whole.rgb, whole.alpha) if a is not None))}")
    lines += [f"{name} map x{factor:g} {digest(values)}" for factor, values in result.maps.items()]
    for reveal in model.upscale(picture, options, stream=True):
        lines.append(f"{name} reveal x{reveal.factor:g} {reveal.complete} {digest(reveal.picture.rgb)}")
    return lines


def training(name: str) -> list[str]:
    """A task's second step from the shipped weights: its numbers, its gradients, and what its critic logs."""
    model = NextScale.from_pretrained("tiny", device="cpu", fp32=True)
    crops = Crops([str(EXAMPLES)], 256)
    restoration: dict[str, Any] = {"workers": 0, "adversarial": 0.1, "adversarial_from": 0, "smooth_share": 0.3}
    if name == "reconstruction":
        config = ReconstructionConfig(adversarial=0.1, noise=0.1, codebook=True)
        task: Task = ReconstructionTask(model.tokenizer, crops, config)
    elif name == "codebook":
        task = CodebookTask(model.tokenizer, crops, CodebookConfig())
    elif name == "transformer":
        transformer = model.transformer.requires_grad_(True)
        task = CodesTask(transformer, model.tokenizer, {64: crops}, CodesConfig(sides=(64,), stages=2))
    elif name == "restorer":
        assert model.restorer is not None
        settings = RestorationConfig(side=64, **restoration)
        task = RestorerTask(model.restorer, Samples(crops, None, None, settings), settings)
    else:
        settings = FusionTrainingConfig(predicted_after=0, predicted=0.5, **restoration)
        task = FusionTask(model, Samples(crops, None, None, settings), settings)
    loss, numbers = task.losses(1, 2)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.numpy() for p in task.model.parameters() if p.grad is not None]
    adversary = getattr(task, "adversary", None)
    logged = as_floats(numbers) | ({} if adversary is None else adversary.step())
    values = np.array([value for key, value in sorted(logged.items()) if not key.startswith("seconds")])
    return [
        f"train {name} loss {float(loss.detach())!r} {digest(values)}",
        f"train {name} gradients {digest(*gradients)}",
    ]


TRAININGS = ("reconstruction", "codebook", "transformer", "restorer", "fusion")


def main() -> None:
    torch.set_num_threads(1)
    model = NextScale.from_pretrained("tiny", device="cpu", fp32=True)
    coffee, astronaut = crop("coffee.jpg", 150), crop("astronaut.jpg", 96)
    ramp = np.linspace(0, 255, 96).astype(np.uint8)[None].repeat(96, 0)
    cases = {
        "coffee": (coffee, UpscaleOptions(all_factors=True, confidence=True)),
        "astronaut": (astronaut, UpscaleOptions(scale=3, all_factors=True, confidence=True)),
        "alpha": (Picture(astronaut.rgb, ramp), UpscaleOptions(scale=3, all_factors=True, fidelity=0.5, tile_batch=1)),
        "cascade": (crop("astronaut.jpg", 40), UpscaleOptions(scale=6, confidence=True, temperature=1.0, seed=3)),
    }
    for name in sys.argv[1:] or (*cases, *TRAININGS):
        lines = training(name) if name in TRAININGS else fingerprints(model, name, *cases[name])
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
