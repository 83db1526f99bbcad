"""Floating-point operations: how they are counted, and those of a distillation's steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Again:
    """FLOPs of one sample that a student step's backwards, or a critic step's, compute again."""

    student: int
    critic: int

    @property
    def joint(self) -> int:
        return self.student + self.critic


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one sample: of the teacher's forward, a student step, a critic
    step, an iteration of both, which share the student's sample, and of the sweep that comes first
    where there are several micro-batches."""

    forward: int
    student: int
    critic: int
    joint: int
    sweep: int

    def in_forwards(self, step: str) -> float:
        """What a step costs, in forwards of the teacher's network."""
        return float(getattr(self, step) / self.forward)


class FlopCounter(TorchDispatchMode):
    """Counts as torch's FlopCounterMode does, by its formulas, but not module by module."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, always inside of this mode."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return inside
