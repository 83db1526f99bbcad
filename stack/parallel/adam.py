"""AdamW, with its moments in float32 or in 8 bits (Dettmers et al., "8-bit optimizers via
block-wise quantization", arXiv 2110.02861).

All have `moments`, so that a checkpoint can hold them, and be loaded into them, before a step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stack.util.errors import UserError


class Adam(Protocol):
    """What trains a network."""

    param_groups: list[dict[str, Any]]
    state: Any

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The state of one parameter, made as its first step would make it."""


class AdamW(torch.optim.AdamW):
    """torch's own."""

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def adam(
    kind: str, parameters: Iterable[nn.Parameter], *, sharded: bool, fused: bool, **options: Any
) -> Adam:
    """An optimizer of a kind that the recipe knows.

    Args:
        sharded: the parameters are FSDP's, which bitsandbytes does not take: then torchao's.
        fused: one kernel for all parameters, where torch has one.

    Raises:
        UserError: the library is not installed, or has no such optimizer.
    """
    if kind == "adamw":
        return AdamW(parameters, fused=fused, **options)
    if not sharded:
        return _bitsandbytes(kind)(parameters, **options)
    if kind == "adamw8bit":
        return _torchao()(parameters, **options)
    raise UserError(f"optim: kind: {kind} does not go with fsdp; take adamw8bit")


def _bitsandbytes(kind: str) -> type[Any]:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(f"optim: kind: {kind} needs bitsandbytes ({error})") from None
    optim = bitsandbytes.optim
    base = {"adamw8bit": optim.AdamW8bit, "paged_adamw8bit": optim.PagedAdamW8bit}[kind]

    class AdamW8bit(base):  # type: ignore[misc,valid-type]
        """Counts steps in a tensor, which a checkpoint can hold; the tables of code words are
        constants and are left out."""

        def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
            state = self.state[parameter]
            if not state:
                self.init_state(self.param_groups[0], parameter, 0, 0)
            return {name: state[name] for name in state if name not in ("step", "qmap1", "qmap2")}

        def init_state(self, group: Any, p: Any, gindex: int, pindex: int) -> None:
            super().init_state(group, p, gindex, pindex)
            self.state[p]["count"] = torch.zeros((), dtype=torch.float32)

        def update_step(self, group: Any, p: Any, gindex: int, pindex: int) -> None:
            state = self.state[p]
            state["step"] = int(state["count"])
            super().update_step(group, p, gindex, pindex)
            state["count"] += 1

    return AdamW8bit


_BLOCK, _SMALL = 64, 4096
"""Elements that share a scale in torchao's moments, and of a weight whose moments stay float32. 64
divide the rows of all large weights of a UNet, so that no block is cut, whatever the ranks."""
_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""And whether they have a sign."""


def _torchao() -> type[Any]:
    try:
        import torchao.optim
        from torch._dynamo.utils import disable_cache_limit
        from torchao.optim.adam import single_param_adam
        from torchao.optim.subclass_8bit import OptimState8bit
    except ImportError as error:
        raise UserError(f"optim: kind: adamw8bit with fsdp needs torchao ({error})") from None

    class AdamW8bit(torchao.optim.AdamW8bit):
        """torchao's step on each rank's own rows. Moments are kept as plain tensors, which a
        checkpoint can hold and other ranks can load, other than torchao's own; and its step over
        DTensors, compiled, was at times wrong on CPUs."""

        def __init__(self, parameters: Iterable[nn.Parameter], **options: Any) -> None:
            super().__init__(parameters, block_size=_BLOCK, **options)
            self._rate = self.param_groups[0]["lr"]

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                self._rate.fill_(float(group["lr"]))
                with disable_cache_limit():  # As torchao has it: a kernel for each shape.
                    for parameter in group["params"]:
                        if parameter.grad is not None:
                            self._update(parameter, group)

        def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
            state, own = self.moments(parameter), _own(parameter)
            state["step"] += 1
            if not own.numel():
                return
            moments = []
            for name, signed in _MOMENTS.items():
                if name in state:
                    moments.append(_own(state[name]))
                    continue
                codes, scale = _own(state[f"{name}.codes"]), _own(state[f"{name}.scale"])
                qmap = _qmap(signed, own.device)
                moments.append(
                    OptimState8bit(codes.view(own.shape), scale.view(-1), qmap, signed, own.dtype)
                )
            update = _compiled(single_param_adam) if own.is_cuda else single_param_adam
            rest = (*group["betas"], group["weight_decay"], group["eps"], True, False)
            update(own, _own(parameter.grad), state["step"], *moments, None, self._rate, *rest)

        def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
            state = self.state[parameter]
            if state:
                return state
            state["step"] = torch.tensor(0.0)
            width = parameter.numel() // max(1, len(parameter)) if parameter.ndim else 0
            for name in _MOMENTS:
                if parameter.numel() < _SMALL or width % _BLOCK:
                    state[name] = torch.zeros_like(parameter)
                else:
                    state[f"{name}.codes"] = _rows(parameter, width, torch.uint8)
                    state[f"{name}.scale"] = _rows(parameter, width // _BLOCK, torch.float32)
            return state

    return AdamW8bit


def _own(value: Tensor) -> Tensor:
    """A rank's part, sharing its memory."""
    return value.detach().to_local() if isinstance(value, DTensor) else value.detach()


def _rows(parameter: nn.Parameter, width: int, dtype: torch.dtype) -> Tensor:
    """Zeros (rows of the parameter, width), cut over ranks as it is."""
    zeros = torch.zeros(len(_own(parameter)), width, dtype=dtype, device=parameter.device)
    if not isinstance(parameter, DTensor):
        return zeros
    cut = DTensor.from_local(
        zeros,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=torch.Size((len(parameter), width)),
        stride=(width, 1),
    )
    return cut.to(parameter.device)  # With offload, from_local has moved it to the GPU.


@cache
def _qmap(signed: bool, device: torch.device) -> Tensor:
    """The numbers that codes stand for (256,)."""
    from torchao.optim.subclass_8bit import OptimState8bit

    return OptimState8bit.zeros((_BLOCK,), signed, _BLOCK, device).qmap


@cache
def _compiled(update: Callable[..., None]) -> Callable[..., None]:
    """With a kernel for each shape, so the first step takes minutes."""
    warnings.filterwarnings("ignore", "OptimState8bit does not implement", UserWarning)
    return torch.compile(update, fullgraph=True, dynamic=False)
