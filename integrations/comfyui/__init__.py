"""nextscale in ComfyUI: one node over the API. README.md beside this file says how to install it.

Pictures go in and out as ComfyUI has them: B H W C, float in [0, 1], without rounding to 8 bits.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import comfy.model_management as management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io

try:
    from nextscale import NextScale, UpscaleOptions
    from nextscale.image import Picture
    from nextscale.upscale.run import Progress, UpscaleResult
except ImportError as error:
    clone = Path(__file__).resolve().parents[2]
    where = clone if (clone / "nextscale").is_dir() else "the folder of your nextscale clone, or its wheel"
    command = f"{sys.executable} -m pip install {where}"
    raise ImportError(f"ComfyUI's Python lacks nextscale ({error}); run: {command}") from None

FOLDER = "nextscale"
"""The kind of models, and the folder below ComfyUI's models."""
SHIPPED = "tiny"
STEPS = 1000
"""Parts of a picture that the progress bar counts."""

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def models() -> dict[str, str]:
    """Names to choose from -> what `from_pretrained` takes: the shipped one, and folders in models/nextscale."""
    found = {SHIPPED: SHIPPED}
    for root in folder_paths.get_folder_paths(FOLDER):
        for config in sorted(Path(root).glob("*/config.json")):
            found.setdefault(config.parent.name, str(config.parent))
    return found


@functools.lru_cache(maxsize=4)
def load(name: str) -> NextScale:
    """A model by its name, loaded once, in the memory where ComfyUI keeps models that are not in use."""
    return NextScale.from_pretrained(models().get(name, name), device="cpu", fp32=True)


class NextScaleUpscale(io.ComfyNode):
    """Restore and enlarge pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs, as ComfyUI shows them."""
        return io.Schema(
            node_id="NextScaleUpscale",
            display_name="nextscale: restore and upscale",
            category="image/upscaling",
            description="Restores photographs: cleaned at their own size, super-resolved at any scale.",
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("model", options=list(models()), default=SHIPPED),
                io.Float.Input("scale", default=4.0, min=0.25, max=16.0, step=0.25),
                io.Float.Input(
                    "fidelity",
                    default=1.0, min=0.0, max=1.0, step=0.05,
                    tooltip="1: the picture nearest to the input; 0: as the codes alone describe it",
                ),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.05),
                io.Int.Input(
                    "seed",
                    default=0, min=0, max=2**53 - 1, control_after_generate=True,
                    tooltip="Of the draws at a temperature above 0",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.0, min=0.0, max=2.0, step=0.05,
                    tooltip="0: the likeliest code, whatever the seed; above 0: draw",
                ),
            ],
            outputs=[
                io.Image.Output("restored", display_name="image"),
                io.Image.Output("cleaned", display_name="cleaned x1"),
                io.Mask.Output("expected_error", display_name="expected error"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        model: str = SHIPPED,
        scale: float = 4.0,
        fidelity: float = 1.0,
        denoise: float = 1.0,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> io.NodeOutput:
        """Restore every picture of the batch.

        Returns:
            image: B sH sW C; cleaned: B H W C; expected error: B sH sW, 1 where a pixel may be off by the whole range.
        """
        options = UpscaleOptions(
            scale=scale, fidelity=fidelity, denoise=denoise, seed=seed, temperature=temperature, confidence=True
        )
        cleaning = options.changed(scale=1.0, confidence=False)
        device = management.get_torch_device()
        restorer = load(model)
        needed = restorer.describe().memory(image.shape[2], image.shape[1], options)
        management.free_memory(needed.weights + needed.tiles, device)
        bar = comfy.utils.ProgressBar(STEPS * len(image))
        runs = 1 if scale >= 1 else 2
        restored, cleaned, errors = [], [], []
        try:
            restorer.to(device)
            for number, picture in enumerate(image.clamp(0, 1).cpu().numpy()):

                def step(progress: Progress, first: float = float(number), share: float = 1 / runs) -> None:
                    management.throw_exception_if_processing_interrupted()
                    bar.update_absolute(int(STEPS * (first + share * progress.share)))

                result = restorer.upscale(picture, options.changed(all_factors=scale >= 1), on_progress=step)
                clean = result.images.get(1.0)
                if clean is None:
                    later = functools.partial(step, first=number + 1 / runs)
                    clean = restorer.upscale(picture, cleaning, on_progress=later).picture
                restored.append(as_comfy(result.picture))
                cleaned.append(as_comfy(clean))
                errors.append(as_mask(result))
        finally:
            restorer.to(management.unet_offload_device(), restorer.dtype)
        return io.NodeOutput(torch.stack(restored), torch.stack(cleaned), torch.stack(errors))


def as_comfy(picture: Picture) -> torch.Tensor:
    """H W C, float32 in [0, 1]; gray as three equal channels, alpha behind the colors."""
    top = torch.iinfo(torch.uint16).max if picture.bits == 16 else 255
    colors = torch.from_numpy(picture.rgb.astype("float32") / top)
    parts = [colors.expand(-1, -1, 3)]
    if picture.alpha is not None:
        parts.append(torch.from_numpy(picture.alpha.astype("float32") / top)[..., None])
    return torch.cat(parts, dim=-1)


def as_mask(result: UpscaleResult) -> torch.Tensor:
    """The expected error H W over the whole range; of a model that expects none, how unsure its codes are."""
    scale = max(result.images)
    if scale in result.expected_error:
        return torch.from_numpy(result.expected_error[scale] / 255).float().clamp(0, 1)
    return 1 - torch.from_numpy(result.confidence[scale]).float() / 255


class NextScaleExtension(ComfyExtension):
    """What this folder adds to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The one node."""
        return [NextScaleUpscale]


async def comfy_entrypoint() -> NextScaleExtension:
    """Called by ComfyUI when it loads this folder."""
    return NextScaleExtension()
