"""AdamW, with its moments in float32 or in 8 bits (Dettmers et al., "8-bit optimizers via
block-wise quantization", arXiv 2110.02861).

All have `moments`, so that a checkpoint can hold them, and be loaded into them, before a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

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
    check_kind(kind, sharded=sharded)
    if kind == "adamw":
        return AdamW(parameters, fused=fused, **options)
    if not sharded:
        return _bitsandbytes(kind)(parameters, **options)
    return _torchao()(parameters, **options)


def check_kind(kind: str, *, sharded: bool) -> None:
    """Refuse, as a UserError, what there is none of for parameters that are FSDP's."""
    if sharded and kind == "paged_adamw8bit":
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
                group = self.param_groups[0]
                # It looks the parameter up there, where DeepSpeed's stage 3 has none but in a step.
                usual, group["params"] = group["params"], [parameter]
                self.init_state(group, parameter, 0, 0)
                group["params"] = usual
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


def _torchao() -> type[Any]:
    try:
        from stack.parallel.adam_torchao import AdamW8bit
    except ImportError as error:
        raise UserError(f"optim: kind: adamw8bit with fsdp needs torchao ({error})") from None
    return AdamW8bit
