"""What a CUDA GPU would do, on the meta device: bf16 autocast and flash attention, for counting."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_LOW = {
    functional.linear,
    functional.conv2d,
    torch.conv2d,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    Tensor.matmul,
}
"""What autocast runs in bfloat16 on CUDA, of what these networks call."""
_HIGH = {functional.group_norm, functional.layer_norm, functional.softmax, Tensor.softmax}
"""... and in float32."""


class ImaginedGPU(TorchFunctionMode):
    """Inside, functions on meta tensors make what they would make on a GPU.

    Args:
        bf16: with autocast, whose bfloat16 copies of weights live as long as a graph needs them;
            those of trained weights until the end of the autocast context in any case.
        flash: flash attention, or else what the meta device does, which is plain products.
    """

    def __init__(self, *, bf16: bool, flash: bool = True) -> None:
        super().__init__()
        self.bf16, self.flash = bf16, flash
        self._copies: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        self._cached: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and self.flash:
            query, key, value = (self._low(tensor) for tensor in args[:3])
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        if func in _LOW:
            args, kwargs = tree_map(self._low, args), tree_map(self._low, kwargs)
        elif func in _HIGH:
            args, kwargs = tree_map(self._high, args), tree_map(self._high, kwargs)
        return func(*args, **kwargs)

    def around(self, function: Callable[..., Any], *, whole: bool = False) -> Callable[..., Any]:
        """The function, always inside of this mode; as an autocast context of its own if it is a
        whole network's."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                result = function(*args, **kwargs)
            if whole:
                self._cached.clear()
            return result

        return inside

    def _low(self, value: Any) -> Any:
        if not self.bf16 or not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not value.is_leaf or not isinstance(value, torch.nn.Parameter):
            return value.bfloat16()
        copy = self._copies.get(id(value))
        if copy is None:
            copy = self._copies[id(value)] = value.bfloat16()
            if value.requires_grad:
                self._cached.append(copy)
        return copy

    def _high(self, value: Any) -> Any:
        low = self.bf16 and isinstance(value, Tensor) and value.dtype == torch.bfloat16
        return value.float() if low else value


class MetaCache(TorchDispatchMode):
    """Inside, an operator on meta tensors works out its result's shape once for all tensors alike.

    PyTorch does so in Python, at half a millisecond a call; a network's blocks ask the same again
    and again. Enter it before modes that count, which then see every call.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Hashable, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _makes_new(func):
            return func(*args, **kwargs)
        key = (func, _alike(args), _alike(tuple(kwargs.items())))
        if key in self._known:
            return _made(self._known[key])
        result = func(*args, **kwargs)
        if _all_new(result, (args, kwargs)):
            self._known[key] = _alike(result)
        return result


@cache
def _makes_new(func: Any) -> bool:
    """Whether an operator's results are, by its schema, neither what it was given nor views of
    that."""
    schema = func._schema
    return not schema.is_mutable and not any(result.alias_info for result in schema.returns)


def _alike(value: Any) -> Any:
    """What an operator's result depends on, of what it is given; hashable."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_alike, value))
    return type(value), value


def _made(known: Any) -> Any:
    """A new result like the known one."""
    kind, *rest = known
    if isinstance(kind, torch.Size):
        stride, dtype, device = rest
        return torch.empty_strided(kind, stride, dtype=dtype, device=device)
    return kind(map(_made, rest[0])) if kind in (list, tuple) else rest[0]


def _all_new(result: Any, given: Any) -> bool:
    """Whether a result is of meta tensors with storages of their own and no larger than they need;
    aten._unsafe_view's is what it was given, whatever its schema says."""
    found, before = (
        [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in (result, given)
    )
    if not found or any(tensor.device.type != "meta" for tensor in (*found, *before)):
        return False
    storages = [tensor.untyped_storage()._cdata for tensor in found]
    return (
        len({*storages}) == len(storages)
        and {*storages}.isdisjoint(tensor.untyped_storage()._cdata for tensor in before)
        and all(_made(_alike(one)).untyped_storage().nbytes() == _held(one) for one in found)
    )


def _held(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
