"""What a piece of training holds in memory and sends to other ranks, counted, not timed.

Both counters see every operator that PyTorch dispatches, on any device, those of other libraries
included.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Live bytes of tensor storages inside the context, and their peak.

    Counted are the storages of ``held`` and all that come up inside: activations, gradients,
    optimizer state, what is gathered from other ranks.

    Args:
        meta: count what would be allocated for tensors of the meta device, and nothing else.
    """

    def __init__(self, held: Iterable[Tensor] = (), *, meta: bool = False) -> None:
        super().__init__()
        self.meta = meta
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in held:
            self._note(tensor)

    def __enter__(self) -> PeakBytes:
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> None:
            self._resize(storage, size)  # How FSDP frees and allocates what it gathers.
            self._change(storage)

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign,assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value)
        return result

    def _note(self, tensor: Tensor) -> None:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if (local.device.type == "meta") != self.meta:
            return
        storage = local.untyped_storage()
        if storage._cdata not in self._sizes:
            weakref.finalize(storage, self._forget, storage._cdata)
            self._sizes[storage._cdata] = 0
        self._change(storage)

    def _change(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            self.live += storage.nbytes() - self._sizes[storage._cdata]
            self._sizes[storage._cdata] = storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


_SENT = {
    "allreduce_": 2.0,
    "_allgather_base_": 1.0,
    "allgather_": 1.0,
    "allgather_into_tensor_coalesced_": 1.0,
    "_reduce_scatter_base_": 1.0,
    "reduce_scatter_": 1.0,
    "reduce_scatter_tensor_coalesced_": 1.0,
    "reduce_": 1.0,
    "broadcast_": 1.0,
}
"""Times (n - 1) / n of a collective's whole tensor that each of n ranks sends, in a ring."""


class Traffic(TorchDispatchMode):
    """Bytes that this rank sends in collectives inside the context, by collective, as the best
    algorithms would (rings): (n - 1) / n of the whole tensor, twice that for an all-reduce.

    Attributes:
        sent: bytes by operator. calls: how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        space, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        if space == "c10d" and name in _SENT:
            boxed = next(value for value in args if isinstance(value, torch.ScriptObject))
            ranks = dist.ProcessGroup.unbox(boxed).size()
            sizes = [
                sum(t.nbytes for t in tree_leaves(value) if isinstance(t, Tensor)) for value in args
            ]
            self.calls[name] += 1
            self.sent[name] += round(_SENT[name] * max(sizes) * (ranks - 1) / ranks)
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Bytes of all collectives."""
        return sum(self.sent.values())
