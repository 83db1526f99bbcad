"""torchao's AdamW with moments in 8 bits, over parameters that FSDP2 has cut."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
import torchao.optim
from torch import Tensor, nn
from torch._dynamo.utils import disable_cache_limit
from torch.distributed.tensor import DTensor
from torchao.optim.adam import single_param_adam
from torchao.optim.subclass_8bit import OptimState8bit

_BLOCK, _SMALL = 64, 4096
"""Elements that share a scale in torchao's moments, and of a weight whose moments stay float32. 64
divide the rows of 99.9% of Stable Diffusion's UNet, so that no block is cut, whatever the ranks;
what they do not divide stays float32 as well."""
_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""And whether they have a sign."""


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


def _own(value: Tensor | None) -> Tensor:
    """A rank's part, sharing its memory."""
    assert value is not None
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value


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
    return OptimState8bit.zeros((_BLOCK,), signed, _BLOCK, device).qmap


@cache
def _compiled(update: Callable[..., None]) -> Callable[..., None]:
    """With a kernel for each shape, so the first step takes minutes."""
    warnings.filterwarnings("ignore", "OptimState8bit does not implement", UserWarning)
    return torch.compile(update, fullgraph=True, dynamic=False)
