"""The restorer: a plain convolutional network at the input's resolution, with a head per factor.

It is SRVGGNetCompact (Wang et al., Real-ESRGAN, realesrgan/archs/srvgg_arch.py), whose published weights load. Added
are heads for the factors below the largest, and the option `denoise`: below 1 it mixes in a second set of weights that
keeps the noise, as Real-ESRGAN's `-dn` does with its two files (deep network interpolation, Wang et al. 2018). The
second set is stored as a low-rank change of the first. The largest factor can have last layers of its own, which take
the same change. They can go on from the picture at factor 1, which is cleaned already (input pre-cleaning, as in
RealBasicVSR, Chan et al. 2022): twice as many layers are on the way then, and hardly a new weight. A few narrow layers
at the largest picture's own resolution can finish it (as in ESRGAN, Wang et al. 2018, whose last layers are there).
Those, and the residual blocks before its head (`largest_blocks`), are the same at every `denoise`.
Shapes: B images, C channels of the body, h w the input's size, H W the output's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import OptionError
from nextscale.model.config import RestorerConfig
from nextscale.model.layers import PlainBlock, zero_


class Restorer(nn.Module):
    """Degraded images B 3 h w in [-1, 1] -> features B C h w -> a restored image at each factor.

    Each head gives a residual, which is added to the input enlarged by repeating its pixels. The heads read what the
    body gives; the largest factor may have last layers of its own (`largest`), which branch off within the body.
    """

    def __init__(self, config: RestorerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.body = Layers(nn.Conv2d(3 if i == 0 else width, width, 3, padding=1) for i in range(config.convs + 1))
        self.largest: Layers | None = None
        if config.largest_convs:
            self.largest = Layers(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.largest_convs))
        self.deeper = nn.Sequential(*(PlainBlock(width) for _ in range(config.largest_blocks)))
        for block in self.deeper:
            zero_(block.conv2)  # type: ignore[arg-type]
        self.cleaning: nn.Conv2d | None = None
        if config.precleaned:
            self.cleaning = nn.Conv2d(width, width, 3, padding=1)
            # At first as if the share in the picture were one in the features.
            nn.init.dirac_(self.cleaning.weight)
            nn.init.zeros_(self.cleaning.bias)  # type: ignore[arg-type]
            with torch.no_grad():
                self.cleaning.weight.mul_(config.precleaned)
        self.heads = nn.ModuleList(nn.Conv2d(width, 3 * factor**2, 3, padding=1) for factor in config.factors)
        self.refinement: Refinement | None = None
        if config.refined_channels:
            self.refinement = Refinement(width, config.refined_channels, config.refined_blocks, config.factors[-1])
        self.grain: nn.ModuleList | None = None
        if config.grain_rank:
            self.grain = nn.ModuleList(
                Grain(3 if i == 0 else width, width, config.grain_rank) for i in range(config.convs + 1)
            )

    def checkpoint_units(self) -> list[nn.Module]:
        """What activation checkpointing runs again, and FSDP gathers: the body as a whole, and the largest's own."""
        return [self.body, *([] if self.largest is None else [self.largest]), *self.deeper]

    def features(
        self, images: Tensor, denoise: Tensor | float = 1.0, factors: Sequence[float] | None = None
    ) -> dict[int, Tensor]:
        """What the head of each factor reads, B C h w; it is the body's, except where the largest has its own layers.

        Where the largest goes on from the picture at factor 1 (`precleaned`), the features of 1 come with its own.

        Args:
            images: B 3 h w in [-1, 1].
            denoise: share of the noise to remove, in [0, 1]: one number, or one per image (B).
            factors: those that are wanted (default: all).
        """
        wanted = [f for f in self.config.factors if factors is None or f in factors]
        x = images / 2 + 0.5
        grains, keep = None, None
        if self.grain is not None and (isinstance(denoise, Tensor) or denoise != 1):
            grains = list(self.grain)
            keep = 1 - torch.as_tensor(denoise, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        if self.largest is None:
            return dict.fromkeys(wanted, self.body(x, grains, keep))
        branch = self.config.convs + 1 - self.config.largest_convs
        x = self.body(x, grains, keep, slice(branch))
        largest, found = self.config.factors[-1], {}
        again = self.cleaning is not None and largest in wanted
        if rest := [f for f in self.config.factors[:-1] if f in wanted or (again and f == 1)]:
            found = dict.fromkeys(rest, self.body(x, grains, keep, slice(branch, None)))
        if largest in wanted:
            if self.cleaning is not None:
                cleaned = self.draft(found, images, 1).clamp(-1, 1).to(images)
                x = x + self.cleaning(self.body(cleaned / 2 + 0.5, grains, keep, slice(branch)) - x)
            found[largest] = self.deeper(self.largest(x, grains and grains[branch:], keep))
        return found

    def base(self, features: dict[int, Tensor], images: Tensor, factor: int) -> Tensor:
        """The picture whose pixels are repeated below a factor's residual: the input, or what `precleaned` makes of it.

        Args:
            features: of this factor at least, as `features` gives them.
            images: B 3 h w in [-1, 1], whose features these are.
            factor: one of the config's.
        """
        share = self.config.precleaned
        if not share or factor != self.config.factors[-1]:
            return images
        return torch.lerp(images.float(), self.draft(features, images, 1).clamp(-1, 1), share)

    def draft(self, features: dict[int, Tensor], images: Tensor, factor: int) -> Tensor:
        """The restored image at one factor.

        Args:
            features: of this factor at least, as `features` gives them.
            images: B 3 h w in [-1, 1], whose features these are.
            factor: one of the config's.

        Returns:
            B 3 H W with H = factor * h, about [-1, 1], float32, not clamped.
        """
        residual = self.heads[self.config.factors.index(factor)](features[factor])
        return self.refined(add_residual(self.base(features, images, factor), residual, factor), features, factor)

    def refined(self, picture: Tensor, features: dict[int, Tensor], factor: int) -> Tensor:
        """A factor's picture, B 3 H W, after the layers at its own resolution; only the largest's may have some.

        Args:
            picture: what a head adds up to.
            features: of this factor at least, as `features` gives them.
            factor: one of the config's.
        """
        if self.refinement is None or factor != self.config.factors[-1]:
            return picture
        out: Tensor = self.refinement(picture, features[factor])
        return out

    def forward(self, images: Tensor, denoise: Tensor | float = 1.0) -> list[Tensor]:
        """Images B 3 h w in [-1, 1] -> restored images at every factor, in the order of the config; see `draft`."""
        features = self.features(images, denoise)
        return [self.draft(features, images, factor) for factor in self.config.factors]


class Layers(nn.Sequential):
    """Convolutions, each with a PReLU of a slope per channel."""

    def __init__(self, convs: Iterable[nn.Conv2d]) -> None:
        super().__init__(*(layer for conv in convs for layer in (conv, nn.PReLU(conv.out_channels))))

    def forward(
        self,
        x: Tensor,
        grains: Sequence[nn.Module] | None = None,
        keep: Tensor | None = None,
        part: slice | None = None,
    ) -> Tensor:
        """B C h w -> B C h w.

        Args:
            grains: a `Grain` per convolution, which is mixed in.
            keep: B 1 1 1: the share of the grains.
            part: which convolutions run (default: all).
        """
        for i in range(len(self) // 2)[part or slice(None)]:
            conv, prelu = self[2 * i], self[2 * i + 1]
            if grains is None:
                x = prelu(conv(x))
                continue
            grain = grains[i]
            x = conv(x) + keep * grain(x)
            slope = prelu.weight.reshape(-1, 1, 1) + keep * grain.slope  # type: ignore[operator]
            x = torch.where(x > 0, x, slope * x)
        return x


class Refinement(nn.Module):
    """Layers at the resolution of a picture, which they change; at first by nothing.

    A head gives all pixels of a cell at once, each a weighted sum of features: none sees its neighbors, and an outline
    is as steep and as straight as the features foresaw. These layers look at the picture itself.

    Args:
        width: channels of the restorer's features.
        channels: of the layers.
        blocks: residual blocks among them.
        factor: the picture's side over the features'.
    """

    def __init__(self, width: int, channels: int, blocks: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.enter = nn.Conv2d(width, channels * factor**2, 3, padding=1)
        self.look = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(PlainBlock(channels) for _ in range(blocks)))
        self.leave = nn.Conv2d(channels, 3, 3, padding=1)
        zero_(self.leave)

    def forward(self, picture: Tensor, features: Tensor) -> Tensor:
        """Picture B 3 H W, about [-1, 1], and features B C h w with H = factor * h -> picture B 3 H W, float32."""
        h = F.pixel_shuffle(self.enter(features), self.factor) + self.look(picture.to(features))
        out: Tensor = picture.float() + 2 * self.leave(self.blocks(h)).float()
        return out


class Grain(nn.Module):
    """The low-rank change of a convolution and of the PReLU's slope after it that keeps all noise; zero at first.

    Args:
        inside: input channels of the convolution.
        width: its output channels.
        rank: channels between the two factors of the change.
    """

    def __init__(self, inside: int, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inside, rank, 3, padding=1, bias=False)
        self.up = nn.Conv2d(rank, width, 1)
        self.slope = nn.Parameter(torch.zeros(width, 1, 1))
        zero_(self.up)

    def forward(self, x: Tensor) -> Tensor:
        """Features B C h w -> what is added to the convolution's output."""
        out: Tensor = self.up(self.down(x))
        return out

    @torch.no_grad()
    def load(self, weight: Tensor, bias: Tensor, slope: Tensor) -> None:
        """Set the best approximation of the rank to a change (truncated singular value decomposition).

        Args:
            weight: change of the convolution's weight, C_out C_in 3 3.
            bias: change of its bias, C_out.
            slope: change of the PReLU's slope, C_out.
        """
        u, s, v = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
        rank = min(len(self.down.weight), len(s))
        root = s[:rank].sqrt()
        self.down.weight.zero_()
        self.up.weight.zero_()
        self.down.weight[:rank] = (root[:, None] * v[:rank]).view(rank, *weight.shape[1:]).float()
        self.up.weight[:, :rank] = (u[:, :rank] * root)[..., None, None].float()
        self.up.bias.copy_(bias)  # type: ignore[union-attr]
        self.slope.copy_(slope.view(-1, 1, 1))


def add_residual(images: Tensor, residual: Tensor, factor: int) -> Tensor:
    """Add a head's residual B 3*factor^2 h w to images B 3 h w enlarged by repetition: B 3 H W, float32."""
    base = F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images
    # In float32: 16 bits would band smooth gradients.
    return base.float() + 2 * F.pixel_shuffle(residual.float(), factor)


@torch.no_grad()
def load_compact(restorer: Restorer, state: dict[str, Tensor], noisy: dict[str, Tensor] | None = None) -> None:
    """Load SRVGGNetCompact's weights (`body.N.*`, one head for one factor).

    The heads of the other factors become the exact area means of its outputs.

    Args:
        restorer: takes the weights.
        state: of the network that removes noise.
        noisy: of the same network, fine-tuned from or with the first one, that keeps noise. It becomes what `denoise`
            0 gives, approximated by the config's rank. Without it, `denoise` has no effect until it is trained.

    Raises:
        KeyError: a tensor is missing or unknown.
        RuntimeError: a tensor has another shape.
        ValueError: the file's factor is not a multiple of all others.
    """
    config = restorer.config
    last = 2 * (config.convs + 1)
    head = {part: state[f"body.{last}.{part}"].float() for part in ("weight", "bias")}
    file_factor = round((len(head["bias"]) / 3) ** 0.5)
    if any(file_factor % factor for factor in config.factors):
        raise ValueError(f"the file enlarges by {file_factor}, the restorer by {config.factors}")
    current = restorer.state_dict()
    names = [name for name in current if name.startswith("body.")]
    for tensors in (state, noisy or {}):
        unknown = set(tensors) - set(names) - {f"body.{last}.weight", f"body.{last}.bias"}
        if unknown:
            raise KeyError(f"unknown tensor {min(unknown)}")
    loaded = current | {name: state[name].float() for name in names}
    loaded |= own_layers({name: loaded[name] for name in names}, config.largest_convs)
    for number, factor in enumerate(config.factors):
        for part, value in head.items():
            loaded[f"heads.{number}.{part}"] = area_head(value, file_factor, factor)
    restorer.load_state_dict(loaded)
    if noisy is not None and restorer.grain is not None:
        load_grain(restorer, {name: noisy[name].float() - loaded[name] for name in names})


@torch.no_grad()
def load_grain(restorer: Restorer, change: dict[str, Tensor]) -> None:
    """Set what `denoise` 0 gives from a change of the body's weights (`body.N.*`)."""
    for i, grain in enumerate(restorer.grain or ()):
        weight, bias, slope = (
            change[f"body.{name}"] for name in (f"{2 * i}.weight", f"{2 * i}.bias", f"{2 * i + 1}.weight")
        )
        grain.load(weight, bias, slope)  # type: ignore[operator]


def area_head(value: Tensor, larger: int, factor: int) -> Tensor:
    """A head's weight or bias at a larger factor -> that of a head at `factor` which gives the area mean of its output.

    Args:
        value: 3 * larger^2 rows.
        larger: a multiple of `factor`.
    """
    cell = larger // factor
    places = value.view(3, factor, cell, factor, cell, *value.shape[1:])
    return places.mean(dim=(2, 4)).flatten(0, 2)


@torch.no_grad()
def with_own_layers(restorer: Restorer, convs: int) -> Restorer:
    """The same restorer whose largest factor has its last layers for itself; those that it had not begin as the body's.

    Args:
        convs: how many.

    Raises:
        OptionError: it has as many already, or the body has fewer.
    """
    config = restorer.config
    if convs <= config.largest_convs:
        raise OptionError(f"this restorer's largest factor has {config.largest_convs} convolutions of its own already")
    if not 0 < convs <= config.convs:
        raise OptionError(f"the largest factor can have 1 to {config.convs} convolutions of its own, not {convs}")
    other = Restorer(replace(config, largest_convs=convs))
    state = restorer.state_dict()
    other.load_state_dict({n: t for n, t in state.items() if "largest." not in n} | own_layers(state, convs))
    return other


def with_precleaning(restorer: Restorer, share: float) -> Restorer:
    """The same restorer whose largest factor goes on from the picture at factor 1; see `RestorerConfig.precleaned`.

    Its pictures are others at once, and want training.

    Raises:
        OptionError: it does so already, has no layers of its own for that, or the share is not in (0, 1].
    """
    config = restorer.config
    if config.precleaned:
        raise OptionError(f"this restorer's largest factor is pre-cleaned already, at a share of {config.precleaned:g}")
    if not 0 < share <= 1:
        raise OptionError(f"precleaned must be above 0 and at most 1, got {share:g}")
    if not config.largest_convs or 1 not in config.factors[:-1]:
        raise OptionError("precleaned needs a restorer with factor 1 and convolutions of the largest factor's own")
    return _grown(restorer, replace(config, precleaned=share))


def with_more_blocks(restorer: Restorer, blocks: int) -> Restorer:
    """The same restorer with more residual blocks after the largest factor's own convolutions; new ones change nothing.

    Args:
        blocks: how many there are to be.

    Raises:
        OptionError: it has as many already, or no convolutions of the largest factor's own.
    """
    config = restorer.config
    if blocks <= config.largest_blocks:
        raise OptionError(f"this restorer's largest factor has {config.largest_blocks} blocks of its own already")
    if not config.largest_convs:
        raise OptionError("blocks of the largest factor's own need convolutions of its own before them")
    return _grown(restorer, replace(config, largest_blocks=blocks))


def with_refinement(restorer: Restorer, channels: int, blocks: int) -> Restorer:
    """The same restorer with layers that refine the largest factor's picture; see `Refinement`. Untrained, they change
    nothing.

    Raises:
        OptionError: it has such layers already, or there are to be none.
    """
    config = restorer.config
    if config.refined_channels:
        raise OptionError(f"this restorer's largest picture is refined by {config.refined_channels} channels already")
    if channels < 1 or blocks < 0:
        raise OptionError(f"refined channels must be 1 or more and blocks 0 or more, got {channels} and {blocks}")
    return _grown(restorer, replace(config, refined_channels=channels, refined_blocks=blocks))


def _grown(restorer: Restorer, config: RestorerConfig) -> Restorer:
    """The same weights in a restorer of larger sizes, whose other layers are as they are made."""
    other = Restorer(config)
    other.load_state_dict(restorer.state_dict(), strict=False)
    return other


def own_layers(state: dict[str, Tensor], convs: int) -> dict[str, Tensor]:
    """The last convolutions on the largest factor's way through a restorer, under the names of its own.

    Args:
        state: of a restorer.
        convs: how many; at least as many as it has of its own.
    """

    def numbered(part: str) -> dict[tuple[int, str], Tensor]:
        names = (name.split(".") for name in state if name.startswith(f"{part}."))
        return {(int(number), kind): state[f"{part}.{number}.{kind}"] for _, number, kind in names}

    body, own = numbered("body"), numbered("largest")
    end = 1 + max(number for number, _ in body)
    branch = end - 1 - max((number for number, _ in own), default=-1)
    way = body | {(number + branch, kind): tensor for (number, kind), tensor in own.items()}
    # Each convolution has a PReLU after it.
    first = end - 2 * convs
    return {f"largest.{number - first}.{kind}": tensor for (number, kind), tensor in way.items() if number >= first}
