"""The training loop: iterate, log, sample, save, stop when asked, resume exactly."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stack.parallel.collectives import ALONE, Ranks, lost_peer
from stack.train.guard import DamageBudget, SkipBudget, StopFlag, stop_on_signals
from stack.train.meter import Meter, memory
from stack.train.metrics import MetricsLog
from stack.train.pulse import Pulse
from stack.train.state import RunState
from stack.train.task import SCORE, Source, Task
from stack.util.clock import BEGAN
from stack.util.errors import PeerLostError, UserError
from stack.util.files import write_atomic, write_json
from stack.util.progress import progress

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Runs one task in one run folder.

    Args:
        folder: the run folder. state: its checkpoints.
        root: the run's folder, which that may lie in; the resolved recipe goes there.
        log_every, sample_every, evaluate_every, save_every: iterations between; 0 samples or
            evaluations: none.
        bad_samples: share of an epoch's samples that may be damaged.
        watchdog: seconds without an iteration after which a rank gives up; 0: never.
        provenance: what this start runs on, a line of provenance.jsonl.
        ranks: the first one writes; all of them train, save and read.
    """

    folder: Path
    task: Task
    source: Source
    state: RunState
    root: Path
    log_every: int
    sample_every: int
    evaluate_every: int
    save_every: int
    bad_samples: float = 0.0
    watchdog: float = 0.0
    provenance: str = ""
    ranks: Ranks = ALONE
    _earlier: Counter[str] = field(init=False, default_factory=Counter)
    """Counts of all ranks in the starts before this one."""

    def fit(self) -> str | None:
        """Train to the end, from the newest checkpoint that verifies if there is one.

        Nothing is written before its state has loaded, nor where nothing is left to do.

        Returns: the signal's name if one asked to stop, after the state was saved.
        """
        with closing(
            Pulse(self.folder, self.watchdog, self.task.total, silent=not self.ranks.first)
        ) as pulse:
            return self._fit(pulse)

    def _fit(self, pulse: Pulse) -> str | None:
        found = self.state.newest()
        state = self.state.load(found) if found else self._fresh()
        if state["iteration"] >= self.task.total:
            print(f"{self.folder}: all {self.task.total} iterations are done")
            return None
        self.ranks.barrier()  # All have loaded.
        self.ranks.by_first(self._settle)
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
        log = MetricsLog(
            self.folder,
            step=state["iteration"],
            seconds=state["seconds"],
            silent=not self.ranks.first,
        )
        if found and self.ranks.first:
            print(f"resuming {self.folder} after iteration {state['iteration']} ({found})")
        log.event("resume" if log.continued else "start", state["iteration"], began=BEGAN)
        try:
            with stop_on_signals() as stop:
                return self._loop(state["iteration"], budgets, log, pulse, stop)
        except (UserError, PeerLostError) as error:
            log.event("failed", pulse.step, reason=str(error))
            raise
        finally:
            with pulse.paused():
                self.state.saver.close()
            log.close()

    def _settle(self) -> None:
        """The first rank's writing before training begins."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / "recipe.yaml", self.state.recipe)
        if self.state.start:
            write_json(self.root / "fork.json", {"checkpoint": str(self.state.start)})
        with (self.folder / "provenance.jsonl").open("a") as file:
            file.write(self.provenance)
        self.state.clear()

    def _fresh(self) -> dict[str, Any]:
        """The part of a state that is not the task's or the source's, at the start of a run."""
        self.task.begin()
        return {"iteration": 0, "skipped": 0, "seconds": 0.0, "counts": {}, "damage": {}}

    def _loop(
        self, first: int, budgets: _Budgets, log: MetricsLog, pulse: Pulse, stop: StopFlag
    ) -> str | None:
        meter, done, reason = Meter(self.source.samples, self.ranks), first, None
        pulse.beat(done)
        try:
            with progress(self.task.name, total=self.task.total, initial=first) as bar:
                while done < self.task.total and not reason:
                    shown = self._iterate(done, budgets, log, meter)
                    done += 1
                    bar.advance(1, **shown)
                    pulse.beat(done)
                    with pulse.paused():
                        score = self._look(done, log)
                    reason = self._reason(stop)
                    if self._due(done) or score is not None or reason:
                        with pulse.paused():
                            self._save(done, budgets, log, meter, score)
                with pulse.paused():
                    self.state.saver.wait()
                pulse.write()
                log.event("stopped" if reason else "finished", done, reason=reason or "")
        except RuntimeError as error:
            told = lost_peer(error)
            if told is None:
                raise
            raise PeerLostError(
                f"{self.folder}: iteration {done}: {told}; checkpoints are whole, start again "
                "with --resume"
            ) from error
        return reason

    def _iterate(
        self, iteration: int, budgets: _Budgets, log: MetricsLog, meter: Meter
    ) -> dict[str, float]:
        """One iteration; returns the losses it logged, if it was one to log."""
        done = iteration + 1
        late, last = done % self.log_every, done == self.task.total
        logged, timed = late < self.task.log_span or last, not late or last
        meter.begin(exact=timed)
        batches = self._take(meter, iteration, budgets.damage)
        figures, stepped = self.task.iteration(iteration, batches)
        meter.end()
        budgets.skips.count(stepped, iteration, self.folder)
        if not logged:
            return {}
        row = self.task.summary(self._over_ranks(figures))
        rates = meter.read() | memory(self.ranks) if timed else {}
        log.row(done, row | rates | self._counts() | {"skipped": budgets.skips.skipped})
        return {name[5:]: value for name, value in row.items() if "loss/" in name}

    def _look(self, done: int, log: MetricsLog) -> float | None:
        """Samples and the quick evaluation, where they are due; returns the latter's score."""
        if self.sample_every and done % self.sample_every == 0:
            self.task.sample(done, self.folder / "samples")
        if not self.evaluate_every or done % self.evaluate_every:
            return None
        found = self.task.evaluate()
        log.row(done, {f"quick/{name}": value for name, value in found.items()})
        return found.get(SCORE, nan)

    def _reason(self, stop: StopFlag) -> str | None:
        """Why to stop now, the same on all ranks. A signal that comes after this was read waits
        for the next boundary; a background save that failed is raised here."""
        asked, failed = self.ranks.sum(bool(stop.reason), self.state.saver.failed)
        if failed:
            self.state.saver.wait()
        return (stop.reason or "a signal") if asked else None

    def _due(self, done: int) -> bool:
        return done % self.save_every == 0 or done == self.task.total

    def _take(self, meter: Meter, iteration: int, damage: DamageBudget) -> Sequence[Any]:
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

    def _over_ranks(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Figures of the global batch: scalars averaged over ranks, samples joined."""
        rows = self.ranks.gather({name: value.cpu() for name, value in figures.items()})
        return {
            name: torch.cat([row[name] for row in rows])
            if value.ndim
            else torch.stack([row[name] for row in rows]).mean()
            for name, value in figures.items()
        }

    def _save(
        self, done: int, budgets: _Budgets, log: MetricsLog, meter: Meter, score: float | None
    ) -> None:
        start = time.perf_counter()
        state = budgets.state_dict() | {"counts": self._counts(), "seconds": log.seconds}
        self.state.save(done, state, score)
        meter.saving += time.perf_counter() - start


@dataclass
class _Budgets:
    """What may end a run, counted over all its starts."""

    skips: SkipBudget
    damage: DamageBudget

    def state_dict(self) -> dict[str, Any]:
        """Entries of a checkpoint's state."""
        return {"skipped": self.skips.skipped, "damage": self.damage.state_dict()}
