"""What the trainer is given: a task, and where its batches come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

SCORE = "frechet_distance"
"""The quick measure by which a state is better than another: the lower, the better."""


class Task(ABC):
    """What is trained. All ranks call all of it together."""

    name: str
    total: int
    """Iterations in all."""

    @property
    def log_span(self) -> int:
        """Consecutive iterations that tell everything: 2 where networks take turns."""
        return 1

    def begin(self) -> None:  # noqa: B027
        """Take over what the first start of a run begins with; not called on a resume."""

    @abstractmethod
    def iteration(self, iteration: int, batches: Sequence[Any]) -> tuple[dict[str, Tensor], bool]:
        """One iteration: figures, and whether the networks stepped."""

    @abstractmethod
    def summary(self, figures: dict[str, Tensor]) -> dict[str, Any]:
        """Figures for the log: numbers, and tables as lists."""

    @abstractmethod
    def sample(self, iteration: int, folder: Path) -> None:
        """Write a picture of the present state into ``folder``, by the first rank."""

    def evaluate(self) -> Mapping[str, float]:
        """Quick measures of the present state, the same on all ranks; none where a task has none.
        The one named :data:`SCORE` ranks checkpoints."""
        return {}

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, by unique name, to save or to fill in place."""

    def objects(self) -> dict[str, Any]:
        """What this rank saves with torch.save, by path in a checkpoint's folder."""
        return {}

    def load_objects(self, folder: Path) -> None:  # noqa: B027
        """Take over :meth:`objects`, after the tensors were filled."""

    @abstractmethod
    def counters(self) -> dict[str, Any]:
        """The rest of the state, as JSON."""

    @abstractmethod
    def load_counters(self, counters: dict[str, Any]) -> None:
        """Take over :meth:`counters`, after the tensors were filled."""


class Source(Protocol):
    """Endless micro-batches."""

    samples: int
    """Samples of an iteration, over all ranks."""

    epoch_samples: int
    """Samples until any is met again."""

    def take(self) -> Sequence[Any]:
        """This rank's micro-batches of the next iteration; UserError if they cannot be read."""

    def counts(self) -> dict[str, int]:
        """What the log should know of this rank's samples so far, such as `bad_samples`."""

    def damage(self) -> list[str]:
        """A line for each of `bad_samples` since the last call, which nobody else tells."""

    def state_dict(self) -> dict[str, Any]:
        """Position, counting delivered batches."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
