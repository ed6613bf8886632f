"""The recipe of `tiny` on one GPU: all its parts at once, each as long as the clock says.

    NEXTSCALE_WEIGHTS=METRICS python runs/tiny_gpu.py DATA START WORK [PART ...]

DATA holds photos*.tar (shards may come while it runs), faces.tar and pages/ (`nextscale data pages`); START the folders
tokenizer/ and restorer/ where the parts begin, as `nextscale train` leaves them, and transformer.safetensors if that
goes on from a former one; WORK gets the pool, the logs and, in
WORK/out, the averaged weights in 16 bits. With PARTs, only those are trained, on what the others left in WORK.

Worker processes make training pairs into a pool that all processes see; one process per part trains from it, by the
tasks of `nextscale train`. SCHEDULE says from when to when, in seconds; the learning rates follow the clock.
NAME:FIRST-LAST changes a part's times. REHEARSE=1 takes a few steps of each part with small sizes, on a CPU too.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import random
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from nextscale.console import complain, say
from nextscale.data.crops import Crops
from nextscale.model.config import ModelConfig, tiny
from nextscale.model.tokenizer import Tokenizer
from nextscale.model.transformer import Transformer
from nextscale.train.adversarial import CRITIC, load_critic, save_critic
from nextscale.train.code_samples import CodeBatch
from nextscale.train.config import (
    CodebookConfig,
    CodesConfig,
    FusionTrainingConfig,
    LoopConfig,
    ReconstructionConfig,
    RestorationConfig,
)
from nextscale.train.log import Tally
from nextscale.train.loop import Run
from nextscale.train.stream import Batch, Samples
from nextscale.train.tasks.codebook import CodebookTask
from nextscale.train.tasks.fusion import FusionTask
from nextscale.train.tasks.reconstruction import ReconstructionTask
from nextscale.train.tasks.restorer import RestorerTask
from nextscale.train.tasks.transformer import CodesTask, start_from_codebook
from nextscale.upscale.nextscale import NextScale, read_restorer, with_restorer

SCHEDULE = {
    "codebook": (12.0, 48.0),
    "restorer": (12.0, 225.0),
    "decoders": (49.0, 330.0),
    "transformer": (226.0, 456.0),
    "predicted": (457.0, 537.0),
    "fusion": (457.0, 537.0),
}
SMALL = bool(os.environ.get("REHEARSE"))
SIDE, LARGE = 64, 128
SLOTS = {SIDE: 256, LARGE: 32} if SMALL else {SIDE: 81920, LARGE: 6144}
WORKERS = {SIDE: 1, LARGE: 1} if SMALL else {SIDE: 11, LARGE: 2}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MARKS = len(fields(Batch)) - 3
"""What a sample has beside its pictures and its grain."""


def restoration(side: int):

    return RestorationConfig(
        side=side,
        presets=("stablesr",) * 3 + ("x4plus",) * 2 + ("camera",) * 3 + ("compressed", "noisy"),
        soft=0.4,
        smooth_share=0.18,
        pages_share=0.1,
        faces_share=0.1,
        grain=0.12,
        pixel=0.4,
        feature=0.3,
        lpips=1.6,
        lpips_scale=(0.55, 1.25),
        adversarial=0.25,
        adversarial_from=500,
        smooth=4.0,
    )


# ---- the pool ----


class Pool:
    """Pairs of one side as memory that all processes see."""

    FIELDS = ("hr", "lr", "grain", "marks")

    def __init__(self, work: Path, side: int, workers: int = 0) -> None:
        n = SLOTS[side]
        counts = work / "pool" / f"{side}-counts"
        self.side, self.slots, self.workers = side, n, workers or counts.stat().st_size // 8
        shapes = {
            "hr": ((n, 3, 4 * side, 4 * side), np.uint8),
            "lr": ((n, 3, side, side), np.uint8),
            "grain": ((n, 3, side, side), np.float16),
            "marks": ((n, MARKS), np.float32),
            "counts": ((self.workers,), np.int64),
        }
        self.arrays = {}
        for name, (shape, kind) in shapes.items():
            path = work / "pool" / f"{side}-{name}"
            self.arrays[name] = np.memmap(path, kind, "r+" if path.exists() else "w+", shape=shape)

    def total(self) -> int:
        """Samples that were ever made, in order of their slots."""
        return int(self.arrays["counts"].min()) * self.workers


def work_on_pool(work: Path, data: Path, side: int, worker: int) -> None:
    torch.set_num_threads(1)
    os.nice(5)

    pool = Pool(work, side)
    config = restoration(side)
    seen: list[str] = []
    samples = None
    n = 0
    while True:
        shards = sorted(str(p) for p in data.glob("photos*.tar"))
        if shards != seen and n % 50 == 0:
            parts = [Crops([*shards], 4 * side, seed=1)]
            parts += [Crops([str(data / name)], 4 * side, seed=1) for name in ("faces.tar", "pages")]
            samples, seen = Samples(*parts, config), shards
        assert samples is not None
        hr, lr, grain, *marks = samples[n * pool.workers + worker]
        slot = (n * pool.workers + worker) % pool.slots
        pool.arrays["hr"][slot] = (hr * 127.5 + 127.5).round().clamp(0, 255).byte().numpy()
        pool.arrays["lr"][slot] = (lr * 127.5 + 127.5).round().clamp(0, 255).byte().numpy()
        pool.arrays["grain"][slot] = grain.numpy()
        pool.arrays["marks"][slot] = [float(m) for m in marks]
        n += 1
        pool.arrays["counts"][worker] = n
        if SMALL and n * pool.workers + worker > pool.slots:
            return


class OnDevice:
    """A copy of the pool on the GPU, which follows it."""

    def __init__(self, work: Path, side: int, fields: tuple[str, ...] = Pool.FIELDS, seed: int = 0) -> None:
        self.pool = Pool(work, side)
        self.parts = {
            name: torch.zeros(
                self.pool.arrays[name].shape, dtype=torch.from_numpy(self.pool.arrays[name][:1]).dtype, device=DEVICE
            )
            for name in fields
        }
        self.marks = torch.zeros(self.pool.slots, MARKS)
        """On the CPU: they decide what is computed."""
        self.copied = 0
        self.random = random.Random(seed)
        self.generator = torch.Generator(DEVICE).manual_seed(seed)

    def follow(self, *, renew: bool = True) -> None:
        """Copy what is new.

        Args:
            renew: let new samples take the place of old ones once the pool is full.
        """
        total = self.pool.total()
        if not renew:
            total = min(total, self.pool.slots)
        self.copied = max(self.copied, total - self.pool.slots)
        while self.copied < total:
            first = self.copied % self.pool.slots
            count = min(total - self.copied, self.pool.slots - first, 2048)
            for name, part in self.parts.items():
                chunk = torch.from_numpy(self.pool.arrays[name][first : first + count])
                part[first : first + count] = chunk.to(DEVICE)
            self.marks[first : first + count] = torch.from_numpy(self.pool.arrays["marks"][first : first + count])
            self.copied += count

    @property
    def ready(self) -> int:
        return min(self.copied, self.pool.slots)

    def draw(self, size: int) -> torch.Tensor:
        return torch.randint(self.ready, (size,), device=DEVICE, generator=self.generator)


class PoolStream:
    """Takes the place of `nextscale.train.stream.Stream`: batches of the pool, flipped and turned at random."""

    def __init__(self, work: Path, side: int, seed: int, grain: float = 0.12) -> None:
        self.source = OnDevice(work, side, ("hr", "lr", "grain"), seed=seed)
        self.calls = 0
        self.grain = grain
        self.samples = SimpleNamespace(photographs=SimpleNamespace(seed=seed))
        self.kinds: list[torch.Tensor] = []
        self.cpu = torch.Generator().manual_seed(seed)

    def batch(self, step: int, size: int):  # noqa: ARG002

        parts = self.source.parts
        if self.calls % 20 == 0:
            self.source.follow()
            while self.source.ready < min(2048, self.source.pool.slots // 2):
                time.sleep(0.5)
                self.source.follow()
            keep = self.source.marks[: self.source.ready, 0] < 1
            self.kinds = [(~keep).nonzero().flatten(), keep.nonzero().flatten()]
        self.calls += 1
        # Batches whose targets keep noise come apart: they take the slower way through the restorer.
        kind = self.kinds[int(self.source.random.random() < self.grain and len(self.kinds[1]) >= size)]
        index = kind[torch.randint(len(kind), (size,), generator=self.cpu)]
        marks = self.source.marks[index]
        index = index.to(DEVICE)
        turn = self.source.random.randrange(8)

        def turned(x: torch.Tensor) -> torch.Tensor:
            x = x.flip(-1) if turn & 1 else x
            x = x.flip(-2) if turn & 2 else x
            return x.transpose(-1, -2) if turn & 4 else x

        hr, lr = (turned(parts[name][index]).float().div_(127.5).sub_(1).contiguous() for name in ("hr", "lr"))
        return Batch(hr, lr, turned(parts["grain"][index]).float(), *marks.unbind(1))


class Latents:
    """Latents of the pool's photographs, or of their inputs as a restorer makes them; made once per slot and kept on
    the GPU.

    Slots are not renewed: the latents would no longer be those of their photographs.
    """

    def __init__(self, work: Path, side: int, tokenizer, seed: int = 0, restorer=None) -> None:
        self.source = OnDevice(work, side, ("hr", "lr") if restorer is None else ("lr",), seed=seed)
        self.tokenizer, self.restorer = tokenizer, restorer
        self.ladder = tokenizer.ladder.for_input(side)
        channels = tokenizer.config.autoencoder.latent_channels
        slots = self.source.pool.slots
        self.latents = [
            torch.zeros(slots, channels, c, c, dtype=torch.float16, device=DEVICE) for c in self.ladder.canvases
        ]
        self.made = 0

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Encode the next slots, if there are any."""
        self.source.follow(renew=False)
        places = slice(self.made, min(self.made + count, self.source.ready))
        if places.start == places.stop:
            return
        with torch.autocast(DEVICE.type, enabled=False):
            if self.restorer is None:
                hr = self.source.parts["hr"][places].float().div_(127.5).sub_(1)
                latents = self.tokenizer.stage_latents(
                    hr.contiguous(memory_format=torch.channels_last), ladder=self.ladder
                )
            else:
                pictures = self.restorer(self.inputs(places))
                latents = [self.tokenizer.latents(picture.clamp(-1, 1)) for picture in pictures]
            for kept, z in zip(self.latents, latents, strict=True):
                kept[places] = z.half()
        self.made = places.stop

    def inputs(self, places: torch.Tensor | slice) -> torch.Tensor:
        lr = self.source.parts["lr"][places].float().div_(127.5).sub_(1)
        return lr.contiguous(memory_format=torch.channels_last)

    def draw(self, size: int) -> torch.Tensor:
        return torch.randint(self.made, (size,), device=DEVICE, generator=self.source.generator)


class PoolCodes:
    """Takes the place of `CodeSamples`."""

    def __init__(self, work: Path, tokenizer, restorer, encoded: int) -> None:
        self.encoded = encoded
        self.latents = {side: Latents(work, side, tokenizer, seed=side, restorer=restorer) for side in (SIDE, LARGE)}
        self.ladders = {side: kept.ladder for side, kept in self.latents.items()}
        self.restorer = restorer

    def batch(self, side: int, step: int, batch: int):  # noqa: ARG002

        kept = self.latents[side]
        kept.grow(8 if SMALL else 256 * 64**2 // side**2)
        places = kept.draw(batch)
        latents = [z[places].float() for z in kept.latents]
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            inputs = kept.inputs(places)
            features = self.restorer.features(inputs, factors=(1,))[1].float()
        clean = kept.source.marks[places.cpu(), 1].long().to(DEVICE)
        return CodeBatch(latents, latents[: self.encoded], features, clean, inputs)


class PoolCrops:
    """Takes the place of `Crops`: photographs alone, wherever they stand in the pool."""

    seed = 1

    def __init__(self, work: Path, side: int) -> None:
        self.pool = Pool(work, side)

    def batch(self, position: int, size: int) -> np.ndarray:
        ready = min(self.pool.total(), self.pool.slots)
        rows = np.random.default_rng((11, position)).integers(ready, size=size)
        return np.ascontiguousarray(self.pool.arrays["hr"][rows])


# ---- the parts ----


class Clock:
    def __init__(self, work: Path, part: str) -> None:
        self.file, self.part, self.read = work / "schedule.json", part, 0.0
        self.bounds()

    def bounds(self) -> tuple[float, float]:
        if time.time() - self.read > 3:
            data = json.loads(self.file.read_text())
            self.first, self.last = (data["zero"] + s for s in data[self.part])
            self.read = time.time()
        return self.first, self.last

    def share(self) -> float:
        first, last = self.bounds()
        return (time.time() - first) / (last - first)


def train(work: Path, part: str, task, config, save, every: float = 60.0):
    """Steps until the clock says stop; the learning rate warms up and falls along a cosine."""

    clock = Clock(work, part)
    floor, warm = config.final_lr, 0.03

    def schedule(step: int) -> float:
        done = min(1.0, max(0.0, clock.share()))
        rise = min(1.0, (step + 1) / max(1, config.warmup))
        if SMALL:
            return rise
        return rise * (floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * min(1.0, max(0.0, (done - warm) / (1 - warm))))))

    run = Run(task, config, schedule)
    saved = shown = time.time()
    while clock.share() < 1 or (SMALL and run.step < 3):
        loss, rate = run.advance()
        if run.step == 5 or time.time() - shown > 15:
            means = " ".join(f"{k} {v:.4f}" for k, v in run.tally.means().items())
            say(f"{time.time() - clock.first:6.1f} s step {run.step} lr {rate:.2e} loss {loss:.4f} {means}")
            run.tally = Tally()
            shown = time.time()
        if time.time() - saved > every:
            save(run.averaged())
            saved = time.time()
    save(run.averaged())
    say(f"done: {run.step} steps")
    return run.averaged()


def half(state: dict[str, torch.Tensor], path: Path) -> None:
    part = path.with_suffix(".part")
    save_file({k: v.detach().half().contiguous().cpu() for k, v in state.items()}, part)
    os.replace(part, path)


def wait_for(path: Path) -> Path:
    while not path.exists():
        time.sleep(0.2)
    return path


def load_tokenizer(start: Path, work: Path, *, codebook: bool = False, decoders: bool = False):

    tokenizer = Tokenizer.from_pretrained(start / "tokenizer")
    for wanted, name in ((codebook, "codebook"), (decoders, "decoders")):
        if wanted:
            state = load_file(wait_for(work / f"{name}.done"))
            tokenizer.load_state_dict(tokenizer.state_dict() | {k: v.float() for k, v in state.items()})
    return tokenizer.to(DEVICE)


def load_restorer(start: Path, work: Path, *, trained: bool):

    restorer = read_restorer(start / "restorer")
    if trained:
        state = load_file(wait_for(work / "restorer.done"))
        restorer.load_state_dict({k: v.float() for k, v in state.items()})
    return restorer.to(DEVICE)


def in_half(holder) -> None:
    """The frozen networks of the terms in 16 bit: autocast would cast their weights at every call."""
    for net in (holder.lpips, holder.vgg):
        if DEVICE.type == "cuda" and net is not None:
            net.to(torch.bfloat16)


def config(**changes):

    base = LoopConfig(
        betas=(0.9, 0.99), clip=1.0, weight_decay=0.0, warmup=30, final_lr=0.01, bf16=DEVICE.type == "cuda"
    )
    return replace(base, **changes)


def codebook(start: Path, work: Path) -> None:

    tokenizer = load_tokenizer(start, work)
    kept = Latents(work, SIDE, tokenizer)
    task = CodebookTask(tokenizer, PoolCrops(work, SIDE), CodebookConfig(side=SIDE))

    def latents(position: int, batch: int):  # noqa: ARG001
        kept.grow(8 if SMALL else 64)
        places = kept.draw(batch)
        return [z[places].float() for z in kept.latents]

    task.latents = latents

    def save(average) -> None:
        half(
            {k: v for k, v in average.state_dict().items() if k.startswith("quantizer.")}, work / "codebook.safetensors"
        )

    batch = 8 if SMALL else 96
    average = train(work, "codebook", task, config(batch=batch, lr=4e-3, ema=0.99, bf16=False), save)
    del average
    os.replace(work / "codebook.safetensors", work / "codebook.done")


def restorer(start: Path, work: Path) -> None:

    model = load_restorer(start, work, trained=False).train()
    stream = PoolStream(work, SIDE, 2)
    task = RestorerTask(model, stream.samples, restoration(SIDE))
    task.stream = stream
    load_critic(task.adversary, start / "restorer" / CRITIC)
    in_half(task.terms)

    def save(average) -> None:
        half(average.state_dict(), work / "out" / "restorer.safetensors")
        save_critic(task.adversary, work / "critic.safetensors")

    batch = 4 if SMALL else 48
    average = train(work, "restorer", task, config(batch=batch, lr=4e-4, ema=0.999, warmup=100), save)
    half(average.state_dict(), work / "restorer.done")


def decoders(start: Path, work: Path) -> None:

    tokenizer = load_tokenizer(start, work, codebook=True)
    settings = ReconstructionConfig(side=SIDE, pixel=0.5, feature=0.6, lpips=1.0, unquantized_prob=0.1, grid=0.0)
    task = ReconstructionTask(tokenizer, PoolCrops(work, SIDE), settings)
    in_half(task)

    def save(average) -> None:
        state = {k: v for k, v in average.state_dict().items() if k.startswith("decoders.")}
        half(state, work / "decoders.safetensors")
        half(average.state_dict(), work / "out" / "tokenizer.safetensors")

    batch = 2 if SMALL else 24
    train(work, "decoders", task, config(batch=batch, lr=4e-4, ema=0.997), save)
    os.replace(work / "decoders.safetensors", work / "decoders.done")


def transformer(start: Path, work: Path) -> None:

    tokenizer = load_tokenizer(start, work, codebook=True)
    model_restorer = load_restorer(start, work, trained=True).eval().requires_grad_(False)
    wanted = tiny().transformer
    whole = ModelConfig(tokenizer.config, wanted, model_restorer.config, tiny().fusion)
    torch.manual_seed(0)
    model = NextScale.create(whole).transformer
    former = start / "transformer.safetensors"
    if former.exists():
        model.load_state_dict({k: v.float() for k, v in load_file(former).items()})
    else:
        start_from_codebook(model, tokenizer.cpu())
        model.stem.start_from(tokenizer.encoder, tokenizer.quant_conv)
    tokenizer.to(DEVICE)
    model.to(DEVICE).train().requires_grad_(True)
    latent_steps = 1 if SMALL else 60 if former.exists() else 400
    settings = CodesConfig(
        sides=(SIDE, SIDE, SIDE, LARGE), mixed=0.6, preference=0.0, latent_steps=latent_steps, latent=1.0, balance=0.5,
        target="restored",
    )  # fmt: skip
    crops = {side: PoolCrops(work, side) for side in (SIDE, LARGE)}
    task = CodesTask(model, tokenizer, crops, settings, restorer=model_restorer)
    task.samples = PoolCodes(work, tokenizer, model_restorer, model.config.stem.encoded)

    def save(average) -> None:
        half(average.state_dict(), work / "out" / "transformer.safetensors")

    batch = 4 if SMALL else 160
    average = train(
        work,
        "transformer",
        task,
        config(batch=batch, lr=1e-3, ema=0.995, betas=(0.9, 0.97), weight_decay=0.02, warmup=100),
        save,
    )
    half(average.state_dict(), work / "transformer.done")


def train_on_codes(name: str, part: str, start: Path, work: Path, lr: float, **terms: float) -> None:
    """Train a part that reads what the trained transformer predicts."""
    stream = PoolStream(work, SIDE, 5, grain=0.0)
    trained = load_file(wait_for(work / "transformer.done"))
    tokenizer = load_tokenizer(start, work, codebook=True, decoders=True)
    channels = tokenizer.config.autoencoder.latent_channels
    model = Transformer(tiny().transformer, tokenizer.ladder, tokenizer.config.codebook_size, channels)
    model.load_state_dict({k: v.float() for k, v in trained.items()})
    whole = with_restorer(tokenizer.cpu(), model, load_restorer(start, work, trained=True).cpu(), tiny().fusion)
    whole.to(str(DEVICE), fp32=True)
    settings = FusionTrainingConfig(**vars(restoration(SIDE)) | {"adversarial": 0.0, "cycle": 10**9} | terms)
    task = FusionTask(whole, stream.samples, settings, part=part)
    task.stream = stream
    in_half(task.terms)

    def save(average) -> None:
        half(average.state_dict(), work / "out" / f"{name}.safetensors")

    batch = 2 if SMALL else 32
    train(work, name, task, config(batch=batch, lr=lr, ema=0.98, final_lr=0.02), save, every=30)


def predicted(start: Path, work: Path) -> None:
    """The decoders, on predicted codes."""
    train_on_codes("predicted", "decoders", start, work, 3e-4, predicted=0.8, predicted_after=10)


def fusion(start: Path, work: Path) -> None:
    """The error that the fusion expects; its pictures stay the restorer's."""
    silent = dict.fromkeys(("pixel", "smooth", "feature", "lpips"), 0.0)
    train_on_codes("fusion", "fusion", start, work, 6e-4, error=1.0, predicted=1.0, predicted_after=0, **silent)


def part_process(name: str, start: Path, work: Path) -> None:
    log = (work / "out" / f"{name}.txt").open("w", buffering=1)
    sys.stdout = sys.stderr = log
    os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    clock = Clock(work, name)
    while time.time() < clock.bounds()[0]:
        time.sleep(0.1)
    PARTS[name](start, work)


PARTS = {part.__name__: part for part in (codebook, restorer, decoders, transformer, predicted, fusion)}


def main() -> int:
    data, start, work = map(Path, sys.argv[1:4])
    schedule = dict(SCHEDULE)
    names = []
    for argument in sys.argv[4:] or PARTS:
        name, _, times = argument.partition(":")
        names.append(name)
        if times:
            first, last = map(float, times.split("-"))
            schedule[name] = first, last
    for folder in ("pool", "out"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    if SMALL:
        schedule = dict.fromkeys(SCHEDULE, (20.0, 21.0))
    (work / "schedule.json").write_text(json.dumps({"zero": time.time(), **schedule}))
    context = mp.get_context("spawn")
    running = {
        name: context.Process(target=part_process, args=(name, start, work), name=name, daemon=True) for name in names
    }
    # Only the transformer sees large inputs; without it their workers make small ones.
    workers = WORKERS if "transformer" in names else {SIDE: sum(WORKERS.values()), LARGE: 0}
    for side, n in workers.items():
        Pool(work, side, max(1, n))
    makers = [
        context.Process(target=work_on_pool, args=(work, data, side, i), name=f"pool {side}, {i}", daemon=True)
        for side, n in workers.items()
        for i in range(n)
    ]
    for process in (*makers, *running.values()):
        process.start()
    # The processes are daemons: they end with this one, which ends with the first that fails.
    while running:
        for process in (*makers, *running.values()):
            if process.exitcode:
                complain(f"{process.name}: failed; see {work / 'out'}")
                return 1
        running = {name: process for name, process in running.items() if process.exitcode is None}
        time.sleep(0.5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
