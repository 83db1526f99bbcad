"""A script of slurm/ as a submitted job, and its run folder."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.forked import ROOT
from tests.pipeline import World
from tests.slurm.cluster import Cluster, until

SMALL = ["--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", "--time=30"]
PATIENCE = 240
"""Seconds that a start may take on a busy machine."""


class Job:
    """A submitted script and its run folder; ``noted``: the folder with the job's notes."""

    def __init__(
        self, slurm: Cluster, world: World, run: Path, *arguments: str, **env: str
    ) -> None:
        self.slurm, self.run, self.noted = slurm, run, run
        settings = {
            "ROOT": str(ROOT),
            "RECIPE": "recipes/digits_js.yaml",
            "TEACHER": str(world.teacher),
            "DATA": str(world.data),
            "OUT": str(run),
            "VENV": sys.prefix,
            "GRACE": "5",
        }
        output = f"--output={run}.out"
        self.number = slurm.run(
            "sbatch", "--parsable", *SMALL, output, *arguments, **(settings | env)
        ).strip()

    @property
    def state(self) -> str:
        return self.slurm.job(self.number).get("JobState", "")

    @property
    def restarts(self) -> int:
        return int(self.slurm.job(self.number).get("Restarts", "0"))

    def told(self) -> str:
        """What the job and its ranks have said, for messages of failed tests."""
        logs = [self.run.with_name(f"{self.run.name}.out"), *self.run.glob("logs/*/*")]
        return "\n".join(f"== {log}\n{log.read_text()[-4000:]}" for log in logs if log.exists())

    def wait(self, state: str) -> None:
        until(lambda: self.state == state, f"{state}, is {self.state}: {self.told()}", PATIENCE)

    def step(self) -> int:
        """Iterations that the log tells of, the newest row's."""
        log = self.run / "metrics.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return rows[-1]["step"] if rows and "event" not in rows[-1] else 0

    def advance(self) -> None:
        """Wait until this start of the job has done some iterations and saved."""

        def advanced() -> bool:
            begun = self.events("start", "resume")
            if len(begun) < len(self.notes("begin")) or not begun:
                return False
            return min(self.step(), self.saved() + 10) > begun[-1]["step"] + 12

        until(advanced, f"progress: {self.told()}", PATIENCE)

    def saved(self) -> int:
        names = [path.name for path in self.run.glob("checkpoints/step-*")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def again(self, restarts: int) -> None:
        """Wait until the job has been put back so often and has begun once more; Slurm would let it
        lie for two minutes."""
        until(lambda: self.restarts >= restarts, f"restart {restarts}: {self.told()}", PATIENCE)

        time.sleep(3)  # A credential of the same second would still count as revoked.

        def begun() -> bool:
            now = ("scontrol", "update", f"jobid={self.number}", "StartTime=now")
            self.slurm.run(*now, check=False)
            return len(self.notes("begin")) > restarts

        until(begun, f"start {restarts}: {self.told()}", PATIENCE)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [row for row in _rows(self.run / "metrics.jsonl") if row.get("event") in kinds]

    def notes(self, *kinds: str) -> list[dict[str, Any]]:
        return [row for row in _rows(self.noted / "jobs.jsonl") if row["event"] in kinds]

    def rank(self, number: int) -> psutil.Process:
        """The process that is a rank now."""
        for process in psutil.process_iter():
            try:
                found = process.environ()
            except psutil.Error:
                continue
            mine = found.get("SLURM_JOB_ID") == self.number and found.get("RANK") == str(number)
            if mine and "stack" in process.cmdline():
                return process
        raise AssertionError(f"no rank {number}")

    def rank_script(self, number: int) -> psutil.Process:
        """The slurm/rank.sh of a rank, which is the process that Slurm has started."""
        scripts = [one for one in self.rank(number).parents() if "slurm/rank.sh" in one.cmdline()]
        return scripts[-1]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
