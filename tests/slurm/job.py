"""A script of slurm/ as a submitted job, and its run folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from tests.forked import ROOT
from tests.slurm.cluster import Cluster, until

_MINUTES = 30
SMALL = ["--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", f"--time={_MINUTES}"]
TOY = "recipes/toy2d_fkl.yaml"
"""What has a training, and needs neither teacher nor data."""
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


class Job:
    """A submitted script and its run folder; ``noted``: the folder with the job's notes. What it
    waits for fails once the job is over, or begun anew, without it.

    Args:
        gates: iterations before which ranks that are forks stop and wait (forks.py).
    """

    def __init__(
        self, slurm: Cluster, run: Path, *arguments: str, gates: Iterable[int] = (), **env: str
    ) -> None:
        self.slurm, self.run, self.noted, self.most = slurm, run, run, 0
        self.gates, self.gate = run.with_name(f"{run.name}.gates"), 0
        self.gates.mkdir(exist_ok=True)
        for gate in gates:
            (self.gates / str(gate)).touch()
        settings = {
            "GATES": str(self.gates),
            "ROOT": str(ROOT),
            "RECIPE": TOY,
            "OUT": str(run),
            "VENV": sys.prefix,
            "REQUEUE_PAUSE": "1",
        }
        output = f"--output={run}.out"
        self.number = slurm.run(
            "sbatch", "--parsable", *SMALL, output, *arguments, **(settings | env)
        ).strip()

    @property
    def slurms(self) -> dict[str, str]:
        """What Slurm has of the job."""
        return self.slurm.job(self.number)

    @property
    def restarts(self) -> int:
        return int(self.slurms["Restarts"])

    def told(self) -> str:
        """What the job and its ranks have said, for messages of failed tests."""
        logs = [self.run.with_name(f"{self.run.name}.out"), *sorted(self.run.glob("logs/*/*"))]
        said = (f"== {log}\n{log.read_text()[-4000:]}" for log in logs if log.exists())
        return "\n".join([str(self.slurms), *said])

    def until(self, condition: Callable[[dict[str, str]], object], what: str) -> None:
        """Wait for a condition on what Slurm has of the job, which it must come to before it is
        over; what the job did last counts."""

        def met() -> bool:
            has = self.slurms
            there = bool(condition(has))
            over = has["JobState"] in _OVER or int(has["Restarts"]) > self.most
            assert there or not over, f"{what}: the job is over, or anew: {self.told()}"
            return there

        until(met, what, self.told)

    def wait(self, end: str) -> None:
        """Wait for the job's end: its state, and ``status:signal`` if that counts, as Slurm has
        them."""
        self.until(lambda has: f"{has['JobState']} {has['ExitCode']}".startswith(end), end)

    def back(self, restarts: int) -> None:
        """Wait until the job has been put back so often."""
        self.most, there = restarts, (str(restarts), "PENDING")
        self.until(lambda has: (has["Restarts"], has["JobState"]) == there, f"restart {restarts}")

    def start(self) -> None:
        """Let a job that has been put back begin, with all its time; Slurm would let it lie for two
        minutes."""
        time.sleep(1.1)  # A credential of the same second would still count as revoked.
        changes = (f"TimeLimit={_MINUTES}", "StartTime=now")
        self.slurm.run("scontrol", "update", f"jobid={self.number}", *changes)

    def again(self, restarts: int) -> None:
        """Wait until the job has been put back so often, and has noted that it begins once more."""
        self.back(restarts)
        self.start()
        self.until(lambda _: len(self.notes("begin")) > restarts, f"start {restarts}")

    def under_way(self, ranks: int) -> None:
        """Wait until so many ranks of this start have said so."""

        def here(_: object) -> bool:
            logs = self.logs.glob("rank-*.log")
            return sum("here" in log.read_text() for log in logs) == ranks

        self.until(here, f"{ranks} ranks")

    def at_gate(self, iteration: int, ranks: int) -> None:
        """Wait until so many ranks have stopped before an iteration."""
        self.gate = iteration
        there = [self.gates / f"{iteration}-{rank}" for rank in range(ranks)]
        self.until(lambda _: all(file.exists() for file in there), f"iteration {iteration}")

    def open_gate(self) -> None:
        """Let the ranks go on."""
        (self.gates / str(self.gate)).unlink()

    @property
    def logs(self) -> Path:
        """The folder of this start's."""
        return self.run / "logs" / f"{self.number}-{self.most}"

    def signal(self, name: str, *options: str) -> None:
        self.slurm.run("scancel", f"--signal={name}", *options, self.number)

    def limit(self, minutes: int) -> None:
        """Let the job's time be up in so many minutes, or up to one sooner."""
        hours, past, _ = self.slurms["RunTime"].split(":")
        limit = f"TimeLimit={int(hours) * 60 + int(past) + minutes}"
        self.slurm.run("scontrol", "update", f"jobid={self.number}", limit)

    def step(self) -> int:
        """Iterations that the log tells of."""
        return max((row["step"] for row in rows(self.run / "metrics.jsonl", None)), default=0)

    def saved(self) -> int:
        names = [path.name for path in self.run.glob("checkpoints/step-*")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return rows(self.run / "metrics.jsonl", *kinds)

    def notes(self, *kinds: str) -> list[dict[str, Any]]:
        return rows(self.noted / "jobs.jsonl", *kinds)

    def rank(self, number: int) -> psutil.Process:
        """The process that is a rank now."""
        return psutil.Process(int((self.logs / f"rank-{number}.pid").read_text()))

    def rank_script(self, number: int) -> psutil.Process:
        """The slurm/rank.sh of a rank, which is the process that Slurm has started."""
        scripts = [one for one in self.rank(number).parents() if "slurm/rank.sh" in one.cmdline()]
        return scripts[-1]


def rows(file: Path, *kinds: str | None) -> list[dict[str, Any]]:
    """The whole lines of a log that tell of these kinds of events (None: of none); none where there
    is no log."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [row for row in map(json.loads, lines) if row.get("event") in kinds]
