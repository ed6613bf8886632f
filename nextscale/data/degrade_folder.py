"""Generates degraded low-resolution inputs of a folder of photographs, each with its recipe, and a sheet of examples.

The recipe of a photograph follows from the seed and its name within the folder, never from the other files. Beside
`a.png` lies `a.json`: the factor and the recipe, from which the same photograph gives the same bytes again.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nextscale import image as images
from nextscale.data.degrade import FACTOR, PRESETS, KernelSpec, PassSpec, Recipe, check_presets, degrade, sample_recipe
from nextscale.errors import ImageError, OptionError
from nextscale.files import check_report

Pixels = NDArray[np.uint8]
CELLS, COLUMNS, SHOWN, ENLARGED, GAP, LINE = 20, 5, 64, 4, 10, 14
"""Of the sheet: number of cells and columns, LR pixels shown, their enlargement, and lengths in pixels."""


@dataclass(frozen=True)
class Plan:
    """How the photographs of a run are degraded.

    Raises:
        OptionError: an unknown preset or a factor below 1.
    """

    preset: str = "stablesr"
    seed: int = 0
    factor: int = FACTOR
    recipes: Path | None = None
    """A folder that an earlier run wrote: its recipes and factors are used instead."""

    def __post_init__(self) -> None:
        check_presets([self.preset])
        if self.factor < 1:
            raise OptionError(f"factor must be 1 or more, got {self.factor}")

    def draw(self, name: str, variant: int = 0) -> tuple[Recipe, int]:
        """Recipe and factor for the photograph of a relative name; a variant is what another seed would give."""
        if self.recipes is not None:
            return read_recipe(self.recipes / Path(name).with_suffix(".json"))
        rng = random.Random(f"{self.seed + variant}/".encode() + os.fsencode(name))
        return sample_recipe(PRESETS[self.preset], rng), self.factor


@dataclass(frozen=True)
class Outcome:
    """The result of one photograph: a file or an error."""

    photo: Path
    size: tuple[int, int] = (0, 0)
    lr: Path | None = None
    lr_size: tuple[int, int] = (0, 0)
    error: str = ""


def degrade_folder(folder: Path, out: Path, plan: Plan, *, sheet: Path | None = None) -> Iterator[Outcome]:
    """Degrade every picture of a folder and its subfolders, each as soon as the one before has been taken.

    A sheet shows the first `CELLS` of them, or so many variants of fewer.

    Raises:
        OptionError: the folders or the sheet cannot be used so. ImageError: the sheet cannot be written.
    """
    if not folder.is_dir():
        raise OptionError(f"-i {folder}: no such folder; check the name")
    if out.resolve().is_relative_to(folder.resolve()):
        raise OptionError(f"-o {out}: lies inside the folder of photographs; choose one outside")
    if sheet is not None:
        try:
            images.check_format(sheet.suffix, bits=8, has_alpha=False, size=(1, 1))
        except ImageError as error:
            raise OptionError(f"--sheet {sheet}: {error}") from None
    photos = images.find_pictures(folder, recursive=True)
    if not photos:
        raise ImageError(f"{folder}: no pictures in this folder; supported are {images.READABLE}")
    if sheet is not None:
        check_report(sheet, "--sheet", "sheet", is_sheet, inputs=[folder, *photos])
        if sheet.resolve() in {(out / photo.relative_to(folder)).with_suffix(".png").resolve() for photo in photos}:
            raise OptionError(f"{sheet}: this is a result of this run; name another file with --sheet")
    inputs = {(status.st_dev, status.st_ino) for status in map(os.stat, photos)}
    owners: dict[Path, Path] = {}
    cells: dict[int, Image.Image] = {}
    for index, photo in enumerate(photos):
        name = photo.relative_to(folder).as_posix()
        target = out / Path(name).with_suffix(".png")
        try:
            if owners.setdefault(target, photo) != photo:
                raise ImageError(f"its result {target} would overwrite that of {owners[target]}; rename one of them")
            if target.exists() and (target.stat().st_dev, target.stat().st_ino) in inputs:
                raise ImageError(f"the result {target} would overwrite an input; choose another -o")
            if other := foreign(target):
                raise ImageError(f"the result would overwrite {other}, which is none; choose another -o")
            images.check_folder(target)
            picture = images.read(photo)
            recipe, factor = plan.draw(name)
            lr = degrade_pixels(images.rgb8(picture), recipe, factor)
            # The recipe first, so that no LR is ever without it.
            images.write_bytes(target.with_suffix(".json"), recipe_text(recipe, factor).encode())
            images.write(target, images.Picture(lr, icc=None if picture.is_gray else picture.icc))
            if sheet is not None:
                for cell in range(index, CELLS if plan.recipes is None else min(CELLS, len(photos)), len(photos)):
                    variant = cell // len(photos)
                    drawn, _ = plan.draw(name, variant)
                    pixels = degrade_pixels(images.rgb8(picture), drawn, factor) if variant else lr
                    title = photo.stem if plan.recipes is not None else f"{photo.stem}, seed {plan.seed + variant}"
                    cells[cell] = draw_cell(pixels, [title, *main_numbers(drawn)])
        except (ImageError, OptionError) as error:
            yield Outcome(photo, error=str(error))
            continue
        yield Outcome(photo, picture.size, target, (lr.shape[1], lr.shape[0]))
    if sheet is not None and cells:
        images.write(sheet, images.Picture(draw_sheet([cells[index] for index in sorted(cells)])))


def foreign(target: Path) -> Path | None:
    """What is in the way of a result, and was not written by a run like this: an LR has its recipe beside it."""
    recipe = target.with_suffix(".json")
    if recipe.exists():
        try:
            read_recipe(recipe)
        except OptionError:
            return recipe
        return None
    return target if target.exists() else None


def degrade_pixels(photo: Pixels, recipe: Recipe, factor: int) -> Pixels:
    """A photograph, H W 3, cut at the right and below to multiples of `factor`, degraded: H/factor W/factor 3.

    Raises:
        ImageError: it is smaller than `factor`, or too large for the memory.
    """
    height, width = (side // factor * factor for side in photo.shape[:2])
    if not height or not width:
        raise ImageError(
            f"{photo.shape[1]} x {photo.shape[0]} pixels are too few to reduce {factor} times; leave it out"
        )
    try:
        hr_13HW = torch.from_numpy(photo[:height, :width]).permute(2, 0, 1)[None].float().div_(255)
        lr_13HW = degrade(hr_13HW, [recipe], factor=factor)
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise
        raise ImageError("there is not enough memory for it; close other programs or use a smaller picture") from None
    pixels: Pixels = (lr_13HW[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels


# ---- recipes ----


def recipe_text(recipe: Recipe, factor: int) -> str:
    """The record beside an LR: one line of JSON."""
    return json.dumps({"factor": factor, "recipe": json.loads(recipe.to_json())}, sort_keys=True) + "\n"


def read_recipe(path: Path) -> tuple[Recipe, int]:
    """Recipe and factor of a recorded line.

    Raises:
        OptionError: the line is missing or is no recipe.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        factor, recipe = data["factor"], Recipe.from_json(json.dumps(data["recipe"]))
    except FileNotFoundError:
        raise OptionError(f"{path}: no such recipe; give the folder of LR images made of these photographs") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path}: not a recorded recipe ({type(error).__name__}: {error}); make it again") from None
    if type(factor) is not int or factor < 1:
        raise OptionError(f"{path}: factor must be a whole number from 1, got {factor!r}")
    return recipe, factor


# ---- the sheet ----


def main_numbers(recipe: Recipe) -> list[str]:
    """A recipe in three short lines."""
    final = f"to LR: {recipe.final_filter}"
    if recipe.final_sinc is not None:
        final += f", sinc {recipe.final_sinc.cutoff:.2f}"
    if recipe.second is not None:
        final += ", before JPEG 2" if recipe.sinc_first else ", after JPEG 2"
    return [_pass_line(1, recipe.first), _pass_line(2, recipe.second), final]


def _pass_line(number: int, spec: PassSpec | None) -> str:
    if spec is None:
        return f"{number}: nothing"
    parts = [_blur(spec.blur), f"x{spec.resize_scale:.2f}"]
    if spec.noise is not None:
        kind = "gauss" if spec.noise.kind == "gaussian" else spec.noise.kind
        parts.append(f"{kind} {spec.noise.strength:.1f}{' gray' * spec.noise.gray}")
    if spec.jpeg_quality is not None:
        parts.append(f"JPEG {spec.jpeg_quality:.0f}")
    return f"{number}: " + ", ".join(parts)


def _blur(spec: KernelSpec | None) -> str:
    if spec is None:
        return "sharp"
    if spec.kind == "sinc":
        return f"sinc {spec.cutoff:.2f}"
    across = "" if spec.sigma_x == spec.sigma_y else f"/{spec.sigma_y:.1f}"
    return f"blur {spec.sigma_x:.1f}{across}"


def draw_cell(lr: Pixels, lines: Sequence[str]) -> Image.Image:
    """The middle of an LR, its pixels enlarged to squares, above its caption."""
    side = SHOWN * ENLARGED
    cell = Image.new("RGB", (side, side + LINE * len(lines) + 4), "white")
    height, width = (min(SHOWN, length) for length in lr.shape[:2])
    top, left = (lr.shape[0] - height) // 2, (lr.shape[1] - width) // 2
    middle = Image.fromarray(np.ascontiguousarray(lr[top : top + height, left : left + width]))
    cell.paste(middle.resize((width * ENLARGED, height * ENLARGED), Image.Resampling.NEAREST))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(size=11)
    for row, line in enumerate(lines):
        draw.text((0, side + 2 + row * LINE), line, fill="black", font=font)
    return cell


def is_sheet(path: Path) -> bool:
    """Whether a picture has the sides of a sheet, which photographs have not; an empty file may become one.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.stat().st_size:
        return True
    try:
        width, height = images.read(path).size
    except ImageError:
        return False
    # A caption has a title and the three lines of `main_numbers`.
    across, down = SHOWN * ENLARGED + GAP, SHOWN * ENLARGED + 4 * LINE + 4 + GAP
    return width in range(across + GAP, COLUMNS * across + GAP + 1, across) and height % down == GAP


def draw_sheet(cells: Sequence[Image.Image]) -> Pixels:
    """Cells of one size in rows of COLUMNS, H W 3."""
    width, height = cells[0].size
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return np.array(sheet)
