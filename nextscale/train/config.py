"""Settings of a training run: plain data, free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from nextscale.errors import check_values

LEAST = {
    "batch": 1,
    "count": 1,
    "cycle": 1,
    "disc_start_stage": 1,
    "grad_accum_steps": 1,
    "kmeans_images": 1,
    "kmeans_rounds": 1,
    "log_every": 1,
    "side": 8,
    "sides": 8,
    "steps": 1,
    "window": 16,
}
"""What numbers are at least; all others may be 0, and none is negative."""
SHARES = frozenset(
    (
        "anchor_photographs",
        "anchor_share",
        "clean",
        "class_free",
        "faces_share",
        "grain",
        "lines_share",
        "max_damaged",
        "mixed",
        "pages_share",
        "pairs_share",
        "predicted",
        "prints_share",
        "smooth_share",
        "soft",
        "unquantized_prob",
    )
)
"""What is in [0, 1]."""
DECAYS = frozenset({"betas", "ema"})
"""What is in [0, 1), as a decay of 1 never learns."""


@dataclass(frozen=True)
class Checked:
    """Settings whose numbers are in range.

    Raises:
        OptionError: naming the first that is not.
    """

    def __post_init__(self) -> None:
        check_values(self, self._checks())

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            parts = value if isinstance(value, tuple) else (value,)
            numbers = [part for part in parts if isinstance(part, int | float)]
            if field.name in SHARES:
                yield field.name, all(0 <= n <= 1 for n in numbers), "in [0, 1]"
            elif field.name in DECAYS:
                yield field.name, all(0 <= n < 1 for n in numbers), "in [0, 1)"
            else:
                least = LEAST.get(field.name, 0)
                yield field.name, all(least <= n < math.inf for n in numbers), f"{least} or more"


@dataclass(frozen=True)
class LoopConfig(Checked):
    """The optimization, the same for every training."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    batch: int = 8
    """Samples per process at a time. An optimizer step sees batch x grad_accum_steps x processes of them."""
    grad_accum_steps: int = 1
    """Batches per optimizer step, whose gradients are averaged: more samples in the memory of one batch."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup: int = 50
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after the warm-up."""
    final_lr: float = 0.02
    """Learning rate at the end, as a share of the peak."""
    start_step: int = 0
    """A run from weights alone, without a saved state, starts here in schedule and data."""
    rewarm: int = 20
    """Steps of warm-up after `start_step`, while the optimizer collects its moments again."""
    weight_decay: float = 0.005
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 2.0
    """Largest gradient norm."""
    ema: float = 0.999
    """Decay of the averaged weights that are saved for use."""
    seed: int = 0
    bf16: bool = True
    """Autocast to bfloat16; weights and optimizer stay in 32 bits."""
    activation_checkpointing: bool = False
    """Activation checkpointing: run every block again in the backward pass instead of keeping what it computed."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What the processes of `torchrun` or `accelerate launch` share: gradients only, or weights and optimizer too."""
    threads: int = 0
    """CPU threads (0: all)."""
    log_every: int = 20
    """Steps between two rows of log.jsonl."""
    save_minutes: float = 4.0
    """Minutes between two checkpoints (0: one after every step)."""
    validate_every: int = 0
    """Steps between two validations, where the training has one (0: never)."""
    sheet_every: int = 0
    """Steps between two sheets of validation pictures, where the training has one (0: never)."""
    tensorboard: bool = False
    """Write the log for TensorBoard too, below the run's folder."""
    peak_tflops: float = 0.0
    """Peak of the device in 10^12 operations a second, for `mfu` in the log (0: unknown)."""


@dataclass(frozen=True)
class ReconstructionConfig(Checked):
    """Autoencoder and decoder training (paper section 4.1: pixel and perceptual terms per stage, hybrid trick)."""

    side: int = 64
    """Side in pixels of the input photograph; crops are as much larger as the ladder's largest factor."""
    soft: float = 0.0
    """Share of targets of which a part is enlarged 1.2 to 2.2 times, as most photographs are not sharp to the pixel."""
    unquantized_prob: float = 0.5
    """Share of samples whose decoder sees the unquantized latent; at 1 the encoder trains too, as it always does in the
    autoencoder phase, which has no codes yet."""
    noise: float = 0.0
    """Noise on unquantized latents, as a share of their root mean square: what quantization will cost them."""
    codebook: bool = False
    """Train the codebook and Phi along with the decoders (the paper's first phase)."""
    pixel: float = 1.0
    """Weight of the pixel difference."""
    squared: bool = False
    """Mean squared instead of mean absolute pixel difference (the paper's)."""
    feature: float = 0.1
    """Weight of the VGG19 feature difference."""
    lpips: float = 0.2
    """Weight of LPIPS-squeeze."""
    adversarial: float = 0.0
    """Weight of the generator's loss against a critic of VGG19 activations (0: no critic). Its gradient at these is as
    large as that of the feature difference, so the two weights compare."""
    disc_start_stage: int = 2
    """First stage that the critic judges, counted from 1; stage 1 mostly removes noise."""
    critic_lr: float = 1e-3
    """Learning rate of the critic."""
    grid: float = 4.0
    """Weight of the error that repeats in every patch of the decoder: a grid that the other terms hardly see."""


@dataclass(frozen=True)
class CodebookConfig(Checked):
    """Codebook training on frozen latents: k-means start, then gradient on codebook and Phi."""

    side: int = 64
    kept_crops: int = 0
    """Train on so many crops, again and again, whose latents are computed once and kept in memory (0: new crops at
    every step). The encoder is frozen and most of the work."""
    kmeans_images: int = 96
    kmeans_rounds: int = 12
    phi_lr: float = 0.05
    """Learning rate of Phi as a share of the codebook's."""
    step_weight: float = 0.2
    """Weight of the L2 after each step beside that after each stage."""
    revive_every: int = 50
    """Steps between replacements of unused codes by residuals (0: never)."""


@dataclass(frozen=True)
class CodesConfig(Checked):
    """Transformer training: cross-entropy and preference term (paper section 3)."""

    sides: tuple[int, ...] = (64, 64, 64, 128)
    """Side in pixels of the input photograph at each step, in turn. A quarter of the area costs less than a quarter of
    the time; larger ones take fewer samples, so that a step sees as many pixels."""
    presets: tuple[str, ...] = ("stablesr",)
    """Degradations, one drawn uniformly per sample."""
    clean: float = 0.25
    """Share of samples that are only downsampled bilinearly (class 1)."""
    soft: float = 0.0
    """Share of targets of which a part is enlarged 1.2 to 2.2 times, as most photographs are not sharp to the pixel."""
    sharpen: bool = False
    """Unsharp-mask the photographs before they are degraded, as Real-ESRGAN and StableSR do."""
    target: Literal["photograph", "restored"] = "photograph"
    """Whose codes are learned: the photograph's (the paper), or those of what the restorer makes of the input, which
    follow from the input (condition: restorer)."""
    class_free: float = 0.1
    """Share of samples whose class is dropped (class 2)."""
    beta: float = 1.0
    """Sharpness of the preference term."""
    preference: float = 1.0
    """Weight of the preference term."""
    stages: int = 0
    """Train on the first stages only (0: all)."""
    kept_crops: int = 0
    """Train on so many samples, again and again (0: new ones at every step); with --cache they are made once."""
    mixed: float = 0.0
    """Share of samples whose canvas holds some of the input's own codes; the targets are then the codes that suit that
    canvas. The model meets its own mistakes when it restores."""
    predicted: float = 0.0
    """Share of samples whose canvas holds only codes that the model itself chooses, again with the codes that suit it
    as targets: scheduled sampling (Bengio et al. 2015)."""
    latent: float = 1.0
    """Weight of the distance of the stem's first channels to the latents of the target (condition: restorer)."""
    latent_steps: int = 0
    """First train the stem alone for so many steps, on that distance (condition: restorer)."""
    balance: float = 1.0
    """A token of a step of side rho weighs rho ** -balance in the cross-entropy (0: all alike; 2: all steps alike)."""

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        yield "sides", bool(self.sides), "one number or more"
        yield from super()._checks()


@dataclass(frozen=True)
class RestorationConfig(Checked):
    """Training of the restorer: pairs and terms of the loss."""

    side: int = 48
    """Side in pixels of the input photograph; crops are as much larger as the largest factor."""
    presets: tuple[str, ...] = ("stablesr", "stablesr", "stablesr", "x4plus", "camera", "camera", "compressed", "noisy")
    """Degradations, one drawn uniformly per sample; a name that is repeated is drawn more often."""
    clean: float = 0.12
    """Share of inputs that are only downsampled, so that the model learns to leave good pictures as they are."""
    soft: float = 0.2
    """Share of targets of which a part is enlarged 1.2 to 2.2 times, as most photographs are not sharp to the pixel."""
    sharpen: bool = False
    """Unsharp-mask the photographs before they are degraded, as Real-ESRGAN and StableSR do. Rendered pages stay as
    they are."""
    faces: tuple[str, ...] = ()
    """Photographs with faces: folders, shards or globs."""
    faces_share: float = 0.12
    """Share of the samples that show a face, where `faces` names some."""
    pages: tuple[str, ...] = ()
    """Rendered text, drawings and ramps: folders, shards or globs."""
    pages_share: float = 0.14
    """Share of the samples that are such pages, where `pages` names some."""
    prints: tuple[str, ...] = ()
    """Rendered pages of small print: folders, shards or globs. Their target is the plain enlargement of the undamaged
    input: beside the page itself what cannot be read would become sharp letters, and wrong ones."""
    prints_share: float = 0.1
    """Share, of the samples that are neither smooth ramps nor lines on them nor `pairs`, of such pages, where `prints`
    names some; their inputs are reduced by an area mean, under little noise and most of them a JPEG."""
    pairs: tuple[str, ...] = ()
    """Folders of pairs that exist, LR and HR as `evaluate` reads them: of a camera, or with another method's results as
    HR (distillation). They are used as they are; their LR may not be smaller than `side`."""
    pairs_share: float = 0.5
    """Share of the samples that are such pairs, where `pairs` names some."""
    smooth_share: float = 0.1
    """Share of the samples that are smooth ramps under strong noise. Only pixels count there: LPIPS and a critic ask
    for texture everywhere."""
    lines_share: float = 0.0
    """Share, of the samples that are neither such ramps nor `pairs`, of ramps with faint lines under little noise:
    vessels, leaf veins and cracks are as weak as noise. All terms count there."""
    grain: float = 0.35
    """Share of the samples whose target keeps a share of the input's noise, drawn uniformly: the denoise dial."""
    workers: int = 1
    """Processes that make pairs beside the training (0: none)."""
    pixel: float = 0.3
    """Weight of the mean absolute pixel difference."""
    smooth: float = 3.0
    """The same on smooth ramps."""
    feature: float = 0.5
    """Weight of the VGG19 feature difference, at each place relative to the features' length."""
    lpips: float = 1.2
    """Weight of LPIPS-squeeze, on resampled pictures."""
    lpips_alex: float = 0.0
    """Weight of LPIPS-alex, likewise, on a part of the pictures that moves by single pixels. By itself it draws blocks
    of the input's pixels, which it hardly sees; `evenness` keeps them out."""
    lpips_scale: tuple[float, float] = (0.5, 0.9)
    """Range of the resampling factor: at a fixed size LPIPS-squeeze, with its strides of two, rewards dots."""
    evenness: float = 0.0
    """Weight of how much the texture depends on the place within the input's pixels, beyond what photographs have:
    blocks, dots, weaves and faint stripes of the enlargement."""
    hatching: float = 0.0
    """Weight of checkers of single pixels beyond the target's, which is where `evenness` alone leads."""
    gradients: float = 0.0
    """Weight of the difference of the local strength of gradients (root mean square): a soft outline has too little of
    it wherever exactly it runs, which the pixel difference forgives."""
    contrast: float = 0.0
    """Weight of differences from the target that count four times as much where contrast is missing as where there is
    too much: of letters above all, which the pixel difference leaves gray."""
    pairs_contrast: float = 0.0
    """Weight of the same on `pairs` alone, beside `contrast`: another method's letters are as black as it draws them,
    while more of it on photographs costs LPIPS."""
    pairs_ripples: float = 0.0
    """Weight of what pictures of `pairs` draw where the targets are flat: halos beside letters, scratches, worms."""
    drift: float = 0.0
    """Weight of the difference of means of 32 px, of photographs and not of `pairs`: whole pictures that are a little
    too dark, which costs PSNR."""
    raggedness: float = 0.0
    """Weight of how ragged outlines are, and how soft: differences along an outline beyond the target's, and what is
    missing of the step across it."""
    anchor: float = 0.0
    """`train restorer`: weight of how far the largest factor's pictures of undamaged photographs move from those of
    the restorer that the training starts from. Damaged inputs change the rest of it, and soft photographs of cameras
    stay as they were."""
    anchor_presets: tuple[str, ...] = ("camera", "fullsize")
    """Degradations of the anchor's inputs."""
    anchor_photographs: float = 0.5
    """Share of the anchor's inputs that are photographs as they are, or at half their size, instead; with less of it
    what becomes of undamaged pictures is free to change."""
    anchor_share: float = 1.0
    """Inputs of the anchor at a step, as a share of the batch and one at least: each costs more than a sample."""
    adversarial: float = 0.0
    """Weight of the generator's loss against a critic of pixels and VGG19 activations (0: no critic)."""
    adversarial_from: int = 150
    """Step from which the generator's loss counts; before it the critic learns alone."""
    critic_lr: float = 3e-4
    """Learning rate of the critic."""
    window: int = 112
    """Side in pixels of the window of each picture that VGG19, and with it the critic, sees. LPIPS sees all of the
    picture."""
    factor_weights: tuple[float, ...] = (0.7, 0.8, 1.0)
    """Weight of each factor's terms, smallest factor first; a model with fewer factors takes the last ones."""


def anchor_inputs(batch: int, share: float) -> int:
    """How many inputs the anchor sees beside a batch (`RestorationConfig.anchor_share`)."""
    return max(1, round(batch * share))


@dataclass(frozen=True)
class FusionTrainingConfig(RestorationConfig):
    """Training of the fusion: what it adds to the restorer's, and where its codes come from."""

    side: int = 64
    """Side in pixels of the input photograph, which the model's ladder must fit."""
    error: float = 0.05
    """Weight of the negative log-likelihood of the expected error."""
    predicted: float = 0.8
    """Share of the samples with codes that the transformer predicts, instead of the photograph's."""
    predicted_after: int = 100
    """Steps over which that share rises from 0: a fusion that starts on predicted codes learns to ignore them."""
    cycle: int = 1600
    """`train fusion` repeats its samples after this many, so that the codes of each are predicted only once."""
