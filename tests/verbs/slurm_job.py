"""A job as slurm/env.sh treats it, without Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.cli import main
from stack.report.journal import read_rows
from tests.report.journals import save


class Job:
    """A job in Slurm, as slurm/env.sh treats it."""

    def __init__(self, run: Path) -> None:
        self.run, self.saved = run, 0

    def begin(self, *options: str) -> int:
        return main(["job", "begin", str(self.run), *options])

    def save(self, steps: int) -> None:
        if steps:
            self.saved += steps
            save(self.run, self.saved)

    def end(self, code: int, state: str = "RUNNING", *options: str) -> int:
        told = ["--status", str(code), "--state", state]
        return main(["job", "end", str(self.run), *told, *options])

    def last(self) -> dict[str, object]:
        return list(read_rows(self.run / "jobs.jsonl"))[-1]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    for name, value in {"JOB_ID": "7", "JOB_NODELIST": "n[1-2]", "NTASKS": "16"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.delenv("JOBS_GONE", raising=False)
    return Job(tmp_path / "runs" / "run")
