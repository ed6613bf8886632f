"""The tables of the paper (Sanchez et al., "Multi-scale Image Super Resolution with a Single Auto-Regressive Model").

Its numbers stand beside ours for orientation only: other pictures for the tokenizer (ImageNet), whole sets, and no word
on channel or border. Its own row at x4 differs between Tables 2 and 3; both are as printed. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Table = Literal["1a", "1b", "2", "3"]
FACTORS = (1.0, 2.0, 4.0)
"""128, 256 and 512 px."""


@dataclass(frozen=True)
class PublishedRow:
    """One method at one factor."""

    method: str
    factor: float
    metrics: dict[str, float]


# Columns as in the paper: for each factor, the methods in turn; a dash where it has none.
_TABLE_1A = """
Switti;   psnr; -     -     24.17; lpips; -     -     0.115
Switti*;  psnr; 17.86 21.43 23.52; lpips; 0.285 0.159 0.144
the paper; psnr; 20.10 22.34 24.81; lpips; 0.184 0.143 0.124
"""
_TABLE_1B = """
RealSR;  psnr;  20.56 23.09 25.72; 22.09 24.41 26.39
RealSR;  lpips; 0.347 0.309 0.310; 0.1996 0.2357 0.2762
DRealSR; psnr;  23.03 26.38 28.61; 25.26 27.65 29.46
DRealSR; lpips; 0.311 0.311 0.335; 0.1871 0.2435 0.2957
"""
_TABLE_2 = """
DIV2K;   psnr;  18.58 20.19 23.91; 17.61 19.55 24.69; 21.95 24.04 24.20
DIV2K;   ssim;  0.4086 0.5010 0.5980; 0.3811 0.4868 0.6470; 0.5949 0.6656 0.6226
DIV2K;   lpips; 0.5501 0.4086 0.3260; 0.6530 0.5667 0.5021; 0.2092 0.2347 0.3488
RealSR;  psnr;  18.97 20.07 24.61; 17.08 18.62 26.11; 22.09 24.41 26.39
RealSR;  ssim;  0.4251 0.5258 0.7169; 0.3824 0.4777 0.7564; 0.6283 0.7252 0.7593
RealSR;  lpips; 0.6178 0.4504 0.3504; 0.6863 0.4912 0.3110; 0.1996 0.2357 0.2762
DRealSR; psnr;  21.56 22.96 28.16; 19.97 22.10 29.04; 25.26 27.65 29.46
DRealSR; ssim;  0.5431 0.6399 0.7652; 0.4990 0.6025 0.8236; 0.7043 0.7858 0.8185
DRealSR; lpips; 0.5650 0.4345 0.3541; 0.6362 0.4563 0.3221; 0.1871 0.2435 0.2957
"""
_METHODS_3 = "BSRGAN Real-ESRGAN SwinIR LDM StableSR DiffBIR SeeSR ResShift VARSR VARSR-d16 the_paper".split()  # noqa: SIM905
_TABLE_3 = """
DIV2K;   psnr;  24.42 24.30 23.77 21.66 23.26 23.49 23.56 21.75 23.91 23.14 24.17
DIV2K;   ssim;  0.6164 0.6324 0.6186 0.4752 0.5670 0.5568 0.5981 0.5422 0.5980 0.5791 0.625
DIV2K;   lpips; 0.3511 0.3267 0.3910 0.4887 0.3228 0.3638 0.3283 0.4284 0.3260 0.4947 0.358
DIV2K;   fid;   50.99 44.34 44.45 55.04 28.32 34.55 28.89 55.77 35.51 45.96 32.48
RealSR;  psnr;  26.38 25.68 25.88 25.66 24.69 24.94 25.31 26.31 24.61 23.79 25.91
RealSR;  ssim;  0.7651 0.7614 0.7671 0.6934 0.7090 0.6664 0.7284 0.7421 0.7169 0.6472 0.756
RealSR;  lpips; 0.2656 0.2710 0.2614 0.3367 0.3003 0.3485 0.2993 0.3460 0.3504 0.4130 0.267
DRealSR; psnr;  28.70 28.61 28.20 27.78 27.87 26.57 28.13 28.46 28.16 27.30 28.76
DRealSR; ssim;  0.8028 0.8052 0.7983 0.7152 0.7427 0.6516 0.7711 0.7673 0.7652 0.7487 0.814
DRealSR; lpips; 0.2858 0.2819 0.2830 0.3745 0.3333 0.4537 0.3142 0.4006 0.3541 0.4088 0.280
"""
_METHODS = {"1b": ("the paper without DPO", "the paper with DPO"), "2": ("VARSR", "the paper's baseline", "the paper")}
_SETS = ("DRealSR", "RealSR", "DIV2K")


def set_of(name: str) -> str:
    """The published set that a folder's name speaks of; empty for none, whose table has no published rows."""
    return next((known for known in _SETS if known.lower() in name.lower()), "")


def published(table: Table, bench: str = "") -> list[PublishedRow]:
    """The rows of a table on a set (`set_of`), in the paper's order, each metric as far as it is given.

    Table 1a is on ImageNet alone, so `bench` does not matter there; other tables have no rows for an unknown set.
    """
    found: dict[tuple[str, float], dict[str, float]] = {}

    def put(method: str, factor: float, metric: str, value: str) -> None:
        if value != "-":
            found.setdefault((method, factor), {})[metric] = float(value)

    if table == "1a":
        for method, *pairs in _cells(_TABLE_1A):
            for metric, values in zip(pairs[::2], pairs[1::2], strict=True):
                for factor, value in zip(FACTORS, values.split(), strict=True):
                    put(method, factor, metric, value)
    elif table == "3":
        for name, metric, values in _cells(_TABLE_3):
            for method, value in zip(_METHODS_3, values.split(), strict=True):
                if name == bench:
                    put(method.replace("_", " "), 4.0, metric, value)
    else:
        for name, metric, *groups in _cells(_TABLE_1B if table == "1b" else _TABLE_2):
            for method, values in zip(_METHODS[table], groups, strict=True):
                for factor, value in zip(FACTORS, values.split(), strict=True):
                    if name == bench:
                        put(method, factor, metric, value)
    return [PublishedRow(method, factor, metrics) for (method, factor), metrics in found.items()]


def _cells(text: str) -> list[list[str]]:
    return [[part.strip() for part in line.split(";")] for line in text.strip().splitlines()]
