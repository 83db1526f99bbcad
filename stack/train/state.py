"""The state of a run: what is saved, and where a run goes on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stack.checkpoint import commit, folders, read, verify
from stack.checkpoint.saver import Saver
from stack.parallel.collectives import ALONE, Ranks
from stack.train.task import Source, Task
from stack.util.errors import UserError


@dataclass
class RunState:
    """A run's checkpoints; all ranks call all of it together.

    Args:
        root: the run's checkpoints/ folder.
        recipe, code_hash: the resolved recipe and the hash of the code that runs, saved along.
        backend: the recipe's parallel.backend.
        keep: which checkpoints stay.
        background: write while training goes on.
        start: whole checkpoint to begin with where the run has none of its own (a fork).
        step: checkpoint to go on from instead of the newest one.
    """

    root: Path
    task: Task
    source: Source
    recipe: str
    code_hash: str
    backend: str = "none"
    keep: commit.Keep = field(default_factory=commit.Keep)
    background: bool = False
    start: Path | None = None
    step: int | None = None
    ranks: Ranks = ALONE
    saver: Saver = field(init=False)

    def __post_init__(self) -> None:
        self.saver = Saver(self.root, self.ranks.apart(), self.keep, background=self.background)

    def newest(self) -> Path | None:
        """The checkpoint to go on from, or None where there is none at all.

        Raises:
            UserError: what was asked for does not exist or is damaged, or nothing else verifies.
        """
        if self.step is not None:
            return verify.checkpoint_of(folders.step_folder(self.root, self.step), "", self.ranks)
        found, skipped = verify.latest(self.root, self.ranks)
        for reason in skipped if self.ranks.first else ():
            print(f"skipped checkpoint {reason}")
        return found or self.start

    def load(self, found: Path) -> dict[str, Any]:
        """Take over a checkpoint; returns its state.json."""
        if read.code_hash(found) != self.code_hash and self.ranks.first:
            print(f"{found}: saved by other code than this; results may differ from one run's")
        self._check_layout(found)
        state = read.load_into(found, self.task.tensors() | (rng := self._rng()))
        self.task.load_objects(found)
        self.task.load_counters(state["task"])
        self.source.load_state_dict(state["stream"])
        # Training draws nothing from the generators; a rank that is new keeps its own.
        torch.set_rng_state(rng[self._own("cpu")])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(rng[self._own("cuda")])
        return state

    def clear(self) -> None:
        """Remove what an interrupted save left, and put later checkpoints than the one asked for
        aside: the run is about to write its own. The first rank's."""
        folders.sweep(self.root)
        aside = folders.set_aside(self.root, self.step) if self.step is not None else None
        if aside:
            print(f"later checkpoints are now in {aside}")

    def save(self, done: int, state: dict[str, Any], score: float | None = None) -> None:
        """Save after ``done`` iterations: ``state``, and what task and source hold.

        Raises:
            UserError: this save or, in the background, the one before was refused.
        """
        layout = {"backend": self.backend, "world_size": self.ranks.world_size}
        scored = {} if score is None else {"score": score}
        contents = commit.Contents(
            tensors=self.task.tensors() | self._rng(),
            objects=self.task.objects(),
            state={
                "iteration": done,
                **state,
                "task": self.task.counters(),
                "stream": self.source.state_dict(),
            },
            recipe=self.recipe,
            mark={"code": self.code_hash, **layout, **scored},
        )
        self.saver.save(done, contents)

    def _check_layout(self, found: Path) -> None:
        """DeepSpeed's files are read by DeepSpeed alone, and by the stage that wrote them."""
        saved = folders.mark(found).get("backend", "none")
        kinds = {name if name.startswith("zero") else "" for name in (saved, self.backend)}
        if len(kinds) > 1:
            raise UserError(
                f"{found}: parallel.backend: saved by {saved}, now {self.backend}; resume with "
                f"{saved}, or start another run with init_from={found}"
            )

    def _rng(self) -> dict[str, Tensor]:
        state = {self._own("cpu"): torch.get_rng_state()}
        if torch.cuda.is_available():
            state[self._own("cuda")] = torch.cuda.get_rng_state()
        return state

    def _own(self, device: str) -> str:
        return f"{read.PER_RANK}rank{self.ranks.rank}.{device}"
