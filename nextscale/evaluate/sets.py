"""The public sets of super-resolution: what each is, how to get it, and how `--bench` takes it. Torch-free."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class PublicSet:
    """A set that its makers publish; it is for whoever downloads it to keep to their terms."""

    title: str
    what: str
    """Its pictures, and what makes the small ones small."""
    steps: tuple[str, ...]
    """How to get it: commands, or where to ask."""
    folder: str
    """What to give to --bench."""
    options: str = ""
    """Further options that it needs."""

    def recipe(self) -> list[str]:
        """Lines that say how to get it and measure on it."""
        folder = shlex.quote(self.folder)
        measure = f"nextscale evaluate --bench {folder}" + (f" {self.options}" if self.options else "")
        return [f"{self.title}: {self.what}", *(f"    {step}" for step in self.steps), f"    {measure}"]


def _edsr(title: str, pictures: str, folder: str) -> PublicSet:
    """One of the classic sets, from the archive of EDSR's authors."""
    return PublicSet(
        title,
        f"{pictures}, reduced bicubically by 4",
        ("curl -O https://cv.snu.ac.kr/research/EDSR/benchmark.tar && tar -xf benchmark.tar",),
        f"benchmark/{folder}",
        "--crop",
    )


_STABLESR = "hf download --repo-type dataset Iceclear/StableSR-TestSets --local-dir ."

SETS: dict[str, PublicSet] = {
    "set5": _edsr("Set5", "5 pictures", "Set5"),
    "set14": _edsr("Set14", "14 pictures", "Set14"),
    "bsd100": _edsr("BSD100", "100 photographs", "B100"),
    "urban100": _edsr("Urban100", "100 buildings", "Urban100"),
    "manga109": PublicSet(
        "Manga109",
        "109 pages of manga, reduced bilinearly here (papers do it bicubically); academic use, on request",
        (
            "ask for it at http://www.manga109.org, and put its 109 test pages into Manga109/HR",
            "nextscale degrade -i Manga109/HR -o Manga109/LR --preset bilinear --factor 4",
        ),
        "Manga109",
        "--crop",
    ),
    "div2k": PublicSet(
        "DIV2K",
        "100 photographs of about 2040 px, the validation part, reduced bicubically by 4; academic use",
        (
            "curl -O http://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_valid_HR.zip",
            "curl -O http://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_valid_LR_bicubic_X4.zip",
            "mkdir DIV2K && for f in DIV2K_valid_*.zip; do unzip -q $f -d DIV2K; done",
        ),
        "DIV2K",
    ),
    "synthetic": PublicSet(
        "Synthetic",
        "the same photographs under StableSR's degradation; the same seed draws the same for everyone",
        (
            "mkdir Synthetic && ln -s ../DIV2K/DIV2K_valid_HR Synthetic/HR",
            "nextscale degrade -i Synthetic/HR -o Synthetic/LR --preset stablesr --factor 4 --seed 0",
        ),
        "Synthetic",
        "--crop",
    ),
    "realsr": PublicSet(
        "RealSR",
        "100 pairs (version 3) that two cameras took at two focal lengths; academic use",
        ("download RealSR(V3) from the address at https://github.com/csjcai/RealSR, and unpack it",),
        "RealSR(V3)",
    ),
    "drealsr": PublicSet(
        "DRealSR",
        "93 pairs for x4 that five cameras took; academic use",
        (
            "download the x4 test part from the address at "
            "https://github.com/xiezw5/Component-Divide-and-Conquer-for-Real-World-Image-Super-Resolution",
        ),
        "DRealSR",
    ),
    "stablesr": PublicSet(
        "StableSR's test sets",
        "crops of 128 and 512 px as diffusion papers use them: DIV2K_V2_val (3000), RealSRVal_crop128 (100), "
        "DrealSRVal_crop128 (93)",
        (f"{_STABLESR}, and unpack one",),
        "RealSRVal_crop128",
    ),
    "realsr50": PublicSet(
        "RealSR 50",
        "the pairs of README's table: of the 100 crops of RealSR in StableSR's test sets those with odd numbers",
        (
            f"{_STABLESR}, and unpack RealSRVal_crop128",
            "rm RealSRVal_crop128/test_[HL]R/*[02468]_*",
        ),
        "RealSRVal_crop128",
    ),
}
