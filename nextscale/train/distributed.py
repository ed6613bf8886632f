"""Several processes as one training: `torchrun` or `accelerate launch` starts them, accelerate joins them.

One process is the same code with nothing to join; it needs neither accelerate nor a process group.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nextscale.errors import NextScaleError, OptionError
from nextscale.install import how_to_install

Value = TypeVar("Value")


def rank() -> int:
    """This process's number, from 0; the environment tells it before anything is joined."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """Where this process trains: its own GPU, or the CPU."""
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def positions(step: int, batch: int) -> range:
    """The samples of this process's batch, counted over all processes since the start of training.

    All processes' batches of a step follow each other: one process with world x batch samples sees the same ones. What
    is drawn for a sample must depend on its position alone.
    """
    first = (step * world() + rank()) * batch
    return range(first, first + batch)


def wrap(module: nn.Module, units: list[nn.Module], parallel: Literal["ddp", "fsdp"]) -> nn.Module:
    """Join the processes around a module whose forward returns the loss; gradients are means over all of them.

    A single process gets the module back as it is, and where it is; several train on `device()`.

    Args:
        units: submodules whose weights fsdp gathers and frees one at a time; the rest is gathered as a whole. With fsdp
            the module's parameters become sharded ones (DTensor), so an optimizer must be made afterwards.

    Raises:
        NextScaleError: accelerate is missing.
        OptionError: the launcher asks for another kind of parallelism.
    """
    if world() == 1:
        return module
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError:
        raise NextScaleError(f"several processes need accelerate: {how_to_install('train')}") from None
    if parallel == "ddp" and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise OptionError("accelerate launch asks for FSDP: add --parallel fsdp, or launch without it")
    # A step may leave parameters out: a stage's decoder, a side's table. (torch warns once where none is.)
    kind = DistributedDataParallelKwargs(find_unused_parameters=True)
    joined = Accelerator(cpu=device().type == "cpu", mixed_precision="no", kwargs_handlers=[kind])
    if parallel == "ddp":
        wrapped: nn.Module = joined.prepare(module)
        return wrapped
    from torch.distributed.fsdp import fully_shard

    for tensor in module.to(joined.device).state_dict().values():
        same = tensor.contiguous()
        dist.broadcast(same, 0)
        tensor.copy_(same)
    for part in (*units, module):
        fully_shard(part)
    return module


@contextmanager
def keep_gradients(module: nn.Module, keep: bool) -> Iterator[None]:
    """Inside, backward passes add up gradients in this process; a later pass outside shares them."""
    if not keep or world() == 1:
        yield
    elif isinstance(module, nn.parallel.DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        module.set_requires_gradient_sync(False)  # type: ignore[operator]
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)  # type: ignore[operator]


def any_process(*facts: bool) -> list[bool]:
    """For each fact, whether it holds in any process."""
    if world() == 1:
        return list(facts)
    flags = torch.tensor(facts, dtype=torch.uint8, device=device())
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def gathered(value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks; small plain data."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def gather(tree: Any) -> Any:
    """Nested dicts and lists with every sharded tensor gathered, to be saved; all processes must call this together."""
    if isinstance(tree, dict):
        return {name: gather(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(gather(value) for value in tree)
    return full(tree).cpu() if isinstance(tree, Tensor) and is_sharded(tree) else tree


def full(tensor: Tensor) -> Tensor:
    """The full tensor, gathered if it is sharded; all processes must call this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard(full: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a full tensor, where `like` is sharded and of its shape; otherwise the tensor itself."""
    if not is_sharded(like) or full.shape != like.shape:
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over the processes."""
    return hasattr(tensor, "full_tensor")


def barrier() -> None:
    """Wait for all processes, so that every one finds what the first one has written."""
    if world() > 1:
        dist.barrier()


def end(status: int) -> int:
    """Hand a program's exit status on; a process that had joined others ends here.

    Gloo's threads outlive their group. One that drops a tensor while the interpreter is being taken down aborts the
    process (seen in one of some dozens of runs), so nothing is taken down.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return status
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def summed(tensor: Tensor) -> Tensor:
    """Sum of every process's tensor."""
    if world() == 1:
        return tensor
    total = tensor.to(device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def from_first(tensor: Tensor) -> Tensor:
    """The first process's tensor, in every process."""
    if world() == 1:
        return tensor
    same = tensor.to(device(), copy=True)
    dist.broadcast(same, 0)
    return same.to(tensor.device)
