"""Pairs from which the restorer learns outlines: small pictures, and what Real-ESRGAN or a restorer makes of them.

    python runs/distill_pairs.py DATA OUT COUNT [--faces FACES] [--pages PAGES] [--pages-share SHARE] [--clean SHARE]
        [--presets NAME ...] [--teacher MODEL] [--gray SHARE] [--blacken] [--steepen TIMES] [--farthest LPIPS]
        [--noise LEVELS] [--side PIXELS] [--seed SEED]

DATA, FACES and PAGES are folders or shards of photographs, of faces and of rendered pages (`nextscale data pages`). OUT
gets LR/ and HR/, as `nextscale train restorer --restoration.pairs OUT` reads them; what is there already is kept. The
degradations are by default those on which Real-ESRGAN's pictures were nearer to the photograph than the restorer's; a
share of the inputs are only reduced (`--clean`), where people like its outlines better (LOG.md). MODEL is a restorer to
learn from instead: the published compact network, which `nextscale convert --from realesrgan --part restorer` loads,
draws the letters of a scan blacker. `--teacher truth` takes the photograph or page itself. Without either this needs
`pip install '.[peers]'`. A share of the pairs can be gray,
as scans are (`--gray`): rendered pages seldom are, and what learns from colored ones alone tints gray letters. Of
letters that are hardly there Real-ESRGAN makes others, or windows of a house: `--farthest 0.12` leaves out what is
farther than that from the page by LPIPS-alex, whose weights NEXTSCALE_WEIGHTS names. `--blacken` makes dark ink on
bright paper as black as ink is, `--steepen 1.7` its outlines so many times as steep. `--noise 9` leaves out inputs
whose gray values have less noise than that, in 8-bit levels.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image, ImageFilter
from torch import Tensor

from nextscale import image as images
from nextscale.data.crops import Crops
from nextscale.errors import NextScaleError, OptionError
from nextscale.evaluate.methods import RealEsrgan
from nextscale.evaluate.metrics.lpips import Lpips
from nextscale.train.config import RestorationConfig
from nextscale.train.stream import Samples
from nextscale.upscale.nextscale import read_restorer

FACTOR = 4
TRUTH = "truth"
"""In place of a teacher: the photograph itself."""
PRESETS = ("compressed", "noisy", "noisy", "x4plus", "stablesr", "stablesr")


def main(
    data: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    count: tyro.conf.Positional[int],
    faces: str = "",
    pages: str = "",
    pages_share: float = 0.25,
    clean: float = 0.2,
    presets: tuple[str, ...] = PRESETS,
    teacher: str = "",
    gray: float = 0.0,
    blacken: bool = False,
    steepen: float = 1.0,
    farthest: float = 0.0,
    noise: float = 0.0,
    side: int = 48,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Make the pairs from where the folder ends."""
    if not 0 <= gray <= 1:
        raise OptionError(f"gray must be in [0, 1], got {gray:g}")
    if not 1 <= steepen < float("inf"):
        raise OptionError(f"steepen must be 1 (as it is) or more, got {steepen:g}")
    if not farthest >= 0:
        raise OptionError(f"farthest must be 0 (any) or more, got {farthest:g}")
    if not 0 <= noise <= 255:
        raise OptionError(f"noise must be in [0, 255] levels, got {noise:g}")
    lpips = Lpips("alex").eval() if farthest else None
    # The shares of faces and pages count only where such photographs are named.
    config = RestorationConfig(
        side=side,
        presets=presets,
        clean=clean,
        soft=0.2,
        faces_share=0.2,
        pages_share=pages_share,
        smooth_share=0.0,
        grain=0.0,
    )
    photographs, face, page = (Crops([n], side * FACTOR, seed=seed) if n else None for n in (data, faces, pages))
    assert photographs is not None
    samples = Samples(photographs, face, page, config)
    enlarged = None if teacher == TRUTH else teacher_of(teacher, threads)
    for folder in ("LR", "HR"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = f"{number:06d}.png"
        if (out / "HR" / name).exists():
            continue
        photograph, small = map(pixels, samples[number][:2])
        if noise_of(small) < noise:
            continue
        large = enlarged(small) if enlarged else photograph
        if random.Random(f"{seed} {number}").random() < gray:
            small, large, photograph = map(without_color, (small, large, photograph))
        if lpips is not None and distance(lpips, large, photograph) > farthest:
            continue
        if blacken:
            large = with_black_ink(large)
        if steepen > 1:
            large = with_steep_ink(large, steepen)
        # The larger one last: where it is there, both are.
        images.write(out / "LR" / name, images.Picture(small))
        images.write(out / "HR" / name, images.Picture(large))


def teacher_of(name: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """What Real-ESRGAN or a restorer's largest factor makes of a picture: H W 3, uint8 -> 4H 4W 3.

    Args:
        name: of the restorer's folder; empty for Real-ESRGAN.
        threads: of PyTorch (0: its own choice).

    Raises:
        ModelError: there is no such restorer.
        OptionError: its largest factor is another.
    """
    if not name:
        return RealEsrgan(threads=threads).enlarged
    if threads:
        torch.set_num_threads(threads)
    restorer = read_restorer(name)
    if (largest := restorer.config.factors[-1]) != FACTOR:
        raise OptionError(f"{name}: its largest factor is {largest}; name a restorer of x{FACTOR}")

    @torch.inference_mode()
    def enlarged(small: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(small).permute(2, 0, 1)[None] / 127.5 - 1
        return pixels(restorer.draft(restorer.features(image, factors=(FACTOR,)), image, FACTOR)[0])

    return enlarged


@torch.inference_mode()
def distance(lpips: Lpips, first: np.ndarray, second: np.ndarray) -> float:
    """LPIPS between two pictures H W 3, uint8."""
    images = (torch.from_numpy(x.copy()).permute(2, 0, 1)[None] / 127.5 - 1 for x in (first, second))
    return float(lpips(*images))


def noise_of(picture: np.ndarray) -> float:
    """The noise of a picture's gray values in 8-bit levels; H W 3, uint8.

    It is what differs from any plane in windows of 3 x 3 (Immerkær 1996), by the median, which outlines hardly move.
    """
    gray = picture.mean(axis=2)
    across = gray[:, 2:] - 2 * gray[:, 1:-1] + gray[:, :-2]
    apart = np.abs(across[2:] - 2 * across[1:-1] + across[:-2])
    return float(np.median(apart)) / (6 * 0.6745)


INK, DARK, PAPER = 6, 70, 150
"""Levels: of black ink, of the lightest that is taken for black, and of the darkest paper."""


def with_black_ink(picture: np.ndarray) -> np.ndarray:
    """H W 3, uint8 -> the same with its darkest fiftieth at the level of ink, where that is dark on bright paper."""
    gray = picture.mean(axis=2)
    dark = float(np.percentile(gray, 2)) - INK
    if not 0 < dark <= DARK - INK or np.median(gray) <= PAPER:
        return picture
    return ((picture - dark) * (255 / (255 - dark))).clip(0, 255).round().astype(np.uint8)


FAINT, PLAIN = 40, 100
"""Levels between ink and paper: below the first outlines stay as they are, from the second on they are steeper."""


def with_steep_ink(picture: np.ndarray, times: float) -> np.ndarray:
    """H W 3, uint8 -> the same with the outlines of ink on bright paper so many times as steep, where they are.

    Gray values between ink and paper move away from the middle of both. What is as bright as the paper stays.
    """
    gray = picture.mean(axis=2)
    if np.median(gray) <= PAPER:
        return picture
    image = Image.fromarray(gray.astype(np.uint8))
    # Ink is the darkest within a stroke's width, paper the median of some letters' surroundings.
    darkest = image.filter(ImageFilter.MinFilter(7)).filter(ImageFilter.BoxBlur(4))
    quarter = image.resize((max(1, image.width // 4), max(1, image.height // 4)), Image.Resampling.BOX)
    around = quarter.filter(ImageFilter.MedianFilter(17)).filter(ImageFilter.BoxBlur(4))
    ink, paper = (np.asarray(x.resize(image.size, Image.Resampling.BILINEAR), float) for x in (darkest, around))
    depth = paper - ink
    share = (gray - ink) / np.maximum(depth, 1)
    steep = np.where(share < 1, ink + ((share - 0.5) * times + 0.5).clip(0, 1) * depth, gray)
    change = ((depth - FAINT) / (PLAIN - FAINT)).clip(0, 1) * (steep - gray)
    return (picture + change[..., None]).clip(0, 255).round().astype(np.uint8)


def without_color(picture: np.ndarray) -> np.ndarray:
    """H W 3, uint8 -> the same with its luma (ITU-R 601) in all three channels."""
    return np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))


def pixels(image: Tensor) -> np.ndarray:
    """3 H W in [-1, 1] -> H W 3, uint8."""
    rounded = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(1, 2, 0).numpy())


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except NextScaleError as error:
        raise SystemExit(str(error)) from None
