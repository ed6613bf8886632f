"""nextscale in ComfyUI: one node over the API. Put or link this folder into `ComfyUI/custom_nodes/nextscale`.

ComfyUI's Python needs the package: `pip install nextscale`. Pictures go in and out as ComfyUI has them: B H W C, float
in [0, 1]; the map of the expected error is a mask, B H W, 1 where a pixel may be off by the whole range.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io

from nextscale import NextScale, UpscaleOptions

FACTORS = (1.0, 2.0, 4.0)


@functools.lru_cache(maxsize=1)
def load(name: str) -> NextScale:
    """The model, loaded once."""
    return NextScale.from_pretrained(name)


class NextScaleUpscale(io.ComfyNode):
    """Restore pictures: cleaned at x1, super-resolved at x2 and x4."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs, as ComfyUI shows them."""
        return io.Schema(
            node_id="NextScaleUpscale",
            display_name="nextscale: restore and upscale",
            category="image/upscaling",
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("factor", options=["4", "2", "1"], default="4"),
                io.Float.Input("fidelity", default=1.0, min=0.0, max=1.0, step=0.05),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.05),
                io.String.Input("model", default="tiny"),
            ],
            outputs=[
                io.Image.Output(display_name="x1"),
                io.Image.Output(display_name="x2"),
                io.Image.Output(display_name="x4"),
                io.Mask.Output(display_name="expected error"),
            ],
        )

    @classmethod
    def execute(
        cls, image: torch.Tensor, factor: str, fidelity: float, seed: int, denoise: float = 1.0, model: str = "tiny"
    ) -> io.NodeOutput:
        """Every picture of the batch; a factor beyond the one asked for gives the largest there is."""
        options = UpscaleOptions(
            scale=float(factor), fidelity=fidelity, denoise=denoise, seed=seed, all_factors=True, confidence=True
        )
        results = [load(model).upscale(picture.cpu().numpy(), options) for picture in image]
        largest = max(results[0].images)
        pictures = [
            torch.from_numpy(np.stack([result.images[min(f, largest)].rgb for result in results])).float() / 255
            for f in FACTORS
        ]
        error = torch.from_numpy(np.stack([result.maps[largest] for result in results])).float() / 255
        return io.NodeOutput(*pictures, error)


class NextScaleExtension(ComfyExtension):
    """What this folder adds to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The one node."""
        return [NextScaleUpscale]


async def comfy_entrypoint() -> NextScaleExtension:
    """Called by ComfyUI when it loads this folder."""
    return NextScaleExtension()
