"""What a CUDA GPU would do, on the meta device: bf16 autocast and flash attention, for counting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

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
