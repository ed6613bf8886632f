"""Counts the floating-point operations and bytes of code, on the operations that torch really runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes."""

    flops: Mapping[str, float] = field(default_factory=dict)
    """Per dtype, of matrix products, convolutions and attentions; an addition or a multiplication is one."""
    least_bytes: float = 0.0
    """Read and written by those alone: what remains if everything else were fused with them."""
    moved_bytes: float = 0.0
    """Read and written by every operation as it runs, elementwise ones included."""

    @property
    def all_flops(self) -> float:
        """In every dtype together."""
        return sum(self.flops.values())

    def __add__(self, other: Work) -> Work:
        flops = {name: self.flops.get(name, 0.0) + other.flops.get(name, 0.0) for name in {**self.flops, **other.flops}}
        return Work(flops, self.least_bytes + other.least_bytes, self.moved_bytes + other.moved_bytes)

    def __mul__(self, times: float) -> Work:
        flops = {name: value * times for name, value in self.flops.items()}
        return Work(flops, self.least_bytes * times, self.moved_bytes * times)


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs under it: weights and activations as often as operations read and write them."""

    _CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    """Torch's registry of FLOPs lacks it (2.13)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._work = Work()

    def take(self) -> Work:
        """The work so far; starts over."""
        work, self._work = self._work, Work()
        return work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        inputs = {tensor.untyped_storage().data_ptr() for tensor in read}
        if func._schema.is_mutable or not all(t.untyped_storage().data_ptr() in inputs for t in written):  # no view
            moved = sum(map(_bytes, [*read, *written]))
            flops = self._flops(func._overloadpacket, args, kwargs or {}, out)
            dtype = str(read[0].dtype).removeprefix("torch.") if read else ""
            self._work += Work({dtype: flops} if flops else {}, moved if flops else 0, moved)
        return out

    def _flops(self, packet: Any, args: Any, kwargs: Any, out: Any) -> float:
        if packet is self._CPU_ATTENTION:
            (query, key, value), (batch, heads) = args[:3], args[0].shape[:2]
            pairs = batch * heads * query.shape[2] * key.shape[2]
            return float(2 * pairs * (query.shape[3] + value.shape[3]))
        formula = flop_registry.get(packet)
        return float(formula(*args, **kwargs, out_val=out)) if formula else 0.0


def _bytes(tensor: Tensor) -> int:
    """What reading a tensor takes; an expanded one is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
