"""The training loop: iterate, log, sample, save, stop when asked, resume exactly."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stack.checkpoint import commit, read, verify
from stack.parallel.collectives import ALONE, Ranks
from stack.train.guard import DamageBudget, SkipBudget, StopFlag, stop_on_signals
from stack.train.metrics import MetricsLog
from stack.util.errors import UserError
from stack.util.files import write_atomic
from stack.util.progress import progress

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What is trained."""

    name: str
    total: int
    """Iterations in all."""

    @property
    def log_span(self) -> int:
        """Consecutive iterations that tell everything: 2 where networks take turns."""

    def iteration(self, iteration: int, batches: Sequence[Any]) -> tuple[dict[str, Tensor], bool]:
        """One iteration: figures, and whether the networks stepped."""

    def summary(self, figures: dict[str, Tensor]) -> dict[str, float]:
        """Figures as numbers for the log."""

    def sample(self, iteration: int, folder: Path) -> None:
        """Write a picture of the present state into ``folder``."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, by unique name, to save or to fill in place."""

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as JSON."""

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


@dataclass
class Trainer:
    """Runs one task in one run folder.

    Args:
        folder: the run folder.
        recipe_file, recipe_text: the resolved recipe. code_hash: of the code that runs.
        log_every, sample_every, save_every: iterations between; 0 samples: none.
        keep_last: newest checkpoints kept.
        bad_samples: share of an epoch's samples that may be damaged.
        ranks: the first one writes; all of them train and read.
    """

    folder: Path
    task: Task
    source: Source
    recipe_file: Path
    recipe_text: str
    code_hash: str
    log_every: int
    sample_every: int
    save_every: int
    keep_last: int
    bad_samples: float = 0.0
    ranks: Ranks = ALONE
    _earlier: Counter[str] = field(init=False, default_factory=Counter)
    """Counts of all ranks in the starts before this one."""

    def fit(self) -> str | None:
        """Train to the end, from the newest checkpoint that verifies if there is one.

        Nothing is written before its state has loaded, nor where nothing is left to do.

        Returns: the signal's name if one asked to stop, after the state was saved.
        """
        found = self._newest()
        state = self._load(found) if found else _fresh()
        if state["iteration"] >= self.task.total:
            print(f"{self.folder}: all {self.task.total} iterations are done")
            return None
        self.ranks.barrier()  # All have loaded.
        if self.ranks.first:
            commit.sweep(self.folder / "checkpoints")
            write_atomic(self.recipe_file, self.recipe_text)
        self._earlier = Counter(state["counts"])
        budgets = _Budgets(
            SkipBudget(skipped=state["skipped"]),
            DamageBudget(
                self.bad_samples,
                per_epoch=self.source.epoch_samples,
                batch=self.source.samples,
                **state["damage"],
            ),
        )
        log = MetricsLog(self.folder, seconds=state["seconds"], silent=not self.ranks.first)
        if found:
            print(f"resuming {self.folder} after iteration {state['iteration']}")
        if log.continued:
            log.event("resume", state["iteration"])
        try:
            with stop_on_signals() as stop:
                return self._loop(state["iteration"], budgets, log, stop)
        finally:
            log.close()

    def _loop(self, first: int, budgets: _Budgets, log: MetricsLog, stop: StopFlag) -> str | None:
        total, meter = self.task.total, _Meter(self.source.samples)
        with progress(self.task.name, total=total, initial=first) as bar:
            for iteration in range(first, total):
                batches = self._take(meter, iteration, budgets.damage)
                figures, stepped = self.task.iteration(iteration, batches)
                meter.iterations += 1
                budgets.skips.count(stepped, iteration, self.folder)
                done = iteration + 1
                shown = {}
                late = done % self.log_every
                if late < self.task.log_span or done == total:
                    row = self.task.summary(self._over_ranks(figures))
                    shown = {name[5:]: value for name, value in row.items() if "loss/" in name}
                    rates = meter.read() if not late or done == total else {}
                    told = row | rates | self._counts()
                    log.row(done, told | {"skipped": budgets.skips.skipped})
                bar.advance(1, **shown)
                if self.ranks.first and self.sample_every and done % self.sample_every == 0:
                    self.task.sample(done, self.folder / "samples")
                # Read once: a signal that comes from here on waits for the next boundary.
                reason = (stop.reason or "a signal") if self.ranks.any(bool(stop.reason)) else None
                if done % self.save_every == 0 or done == total or reason:
                    self._save(done, budgets, log)
                if reason:
                    log.event(f"stopped by {reason}", done)
                    return reason
        return None

    def _take(self, meter: _Meter, iteration: int, damage: DamageBudget) -> Sequence[Any]:
        """This rank's micro-batches. Where one rank has none, all stop with what it says."""
        batches: Sequence[Any] = ()
        error = None
        try:
            batches = meter.fetch(self.source)
        except UserError as caught:
            error = str(caught)
        bad = self.source.counts().get("bad_samples", 0)
        bad, broken = self.ranks.sum(bad, error is not None)
        bad += self._earlier["bad_samples"]
        told = self._tell() if bad > damage.total else []
        if broken:
            raise UserError(next(filter(None, self.ranks.gather(error))))
        damage.count(bad, iteration, told)
        return batches

    def _tell(self) -> list[str]:
        """What all ranks' samples suffered since the last time; the first rank logs it, which
        alone is sure to be heard."""
        lines = list(chain(*self.ranks.gather(self.source.damage())))
        for line in lines if self.ranks.first else ():
            logger.warning("%s", line)
        return lines

    def _counts(self) -> dict[str, int]:
        """The source's counts, added up over ranks and starts."""
        total = self._earlier.copy()
        for counts in self.ranks.gather(self.source.counts()):
            total.update(counts)
        return dict(total)

    def _newest(self) -> Path | None:
        """The checkpoint to go on from: the first rank looks, and tells the others."""
        found = None
        if self.ranks.first:
            root = self.folder / "checkpoints"
            found, skipped = verify.latest(root)
            for reason in skipped:
                print(f"skipped checkpoint {reason}")
        return self.ranks.gather(found)[0]

    def _over_ranks(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Figures of the global batch: scalars averaged over ranks, samples joined."""
        rows = self.ranks.gather(figures)
        return {
            name: torch.cat([row[name] for row in rows])
            if value.ndim
            else torch.stack([row[name] for row in rows]).mean()
            for name, value in figures.items()
        }

    def _save(self, done: int, budgets: _Budgets, log: MetricsLog) -> None:
        generators = self.ranks.gather(torch.get_rng_state())
        rng = {f"rng.rank{rank}.cpu": value for rank, value in enumerate(generators)}
        counts = self._counts()
        if self.ranks.first:
            self._write(done, budgets.state_dict() | {"counts": counts}, log, rng)
        self.ranks.barrier()

    def _write(
        self, done: int, counted: dict[str, Any], log: MetricsLog, rng: dict[str, Tensor]
    ) -> None:
        state = {
            "iteration": done,
            **counted,
            "seconds": log.seconds,
            "task": self.task.counters(),
            "stream": self.source.state_dict(),
        }
        commit.save(
            self.folder / "checkpoints",
            done,
            self.task.tensors() | rng,
            state,
            recipe=self.recipe_text,
            code_hash=self.code_hash,
            world_size=self.ranks.world_size,
            keep_last=self.keep_last,
        )

    def _load(self, found: Path) -> dict[str, Any]:
        if read.code_hash(found) != self.code_hash:
            print(f"{found}: saved by other code than this; results may differ from one run's")
        rng = {
            name: torch.empty(shape, dtype=dtype)
            for name, (shape, dtype) in read.describe(found).items()
            if name.startswith("rng.")
        }
        state = read.load_into(found, self.task.tensors() | rng)
        self.task.load_counters(state["task"])
        self.source.load_state_dict(state["stream"])
        # Training draws nothing from the generator; a rank that is new keeps its own.
        torch.set_rng_state(rng.get(f"rng.rank{self.ranks.rank}.cpu", torch.get_rng_state()))
        return state


def _fresh() -> dict[str, Any]:
    """The part of a state that is not the task's or the source's, at the start of a run."""
    return {"iteration": 0, "skipped": 0, "seconds": 0.0, "counts": {}, "damage": {}}


@dataclass
class _Budgets:
    """What may end a run, counted over all its starts."""

    skips: SkipBudget
    damage: DamageBudget

    def state_dict(self) -> dict[str, Any]:
        """Entries of a checkpoint's state."""
        return {"skipped": self.skips.skipped, "damage": self.damage.state_dict()}


class _Meter:
    """Rates since the last reading."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._reset()

    def _reset(self) -> None:
        self.start, self.waited, self.iterations = time.perf_counter(), 0.0, 0

    def fetch(self, source: Source) -> Sequence[Any]:
        """Take the next micro-batches and count the wait."""
        before = time.perf_counter()
        batches = source.take()
        self.waited += time.perf_counter() - before
        return batches

    def read(self) -> dict[str, float]:
        """Images per second and share of time spent waiting for data."""
        seconds = time.perf_counter() - self.start
        row = {
            "images_per_second": self.iterations * self.samples / seconds,
            "data_wait": self.waited / seconds,
        }
        self._reset()
        return row
