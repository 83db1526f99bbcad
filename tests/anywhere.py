"""Both suites as other machines would run them: ``python -m tests.anywhere [RUN...]``, by
``make test-anywhere``. The log of each run is left in ``anywhere/``; status 1 if a run failed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "anywhere"
WORKERS = ("-n", "2", "--dist", "loadfile")


@dataclass(frozen=True)
class Run:
    """Another machine: what the environment tells libraries, how pytest is called, and how many
    cores something else has."""

    environment: dict[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = WORKERS
    busy: int = 0


def instructions(aten: str, onednn: str, threads: int) -> Run:
    """A processor that has no newer instructions."""
    return Run(
        {
            "ATEN_CPU_CAPABILITY": aten,
            "ONEDNN_MAX_CPU_ISA": onednn,
            "F_DISTILL_TEST_THREADS": str(threads),
        }
    )


RUNS = {
    "default": instructions("default", "SSE41", 1),
    "avx2": instructions("avx2", "AVX2", 2),
    "order": Run(arguments=("-p", "randomly")),
    "busy": Run(busy=2),
}


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """Processes that do nothing, all the time."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def pytest(name: str, part: str, *arguments: str) -> subprocess.Popen[str]:
    """A part of the suites under a run's conditions."""
    run = RUNS[name]
    with (LOGS / f"{name}-{part}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-m", "not drill", "--durations=25", *arguments],
            cwd=ROOT,
            env={**os.environ, **run.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def told(name: str, part: str) -> str:
    """What pytest says last."""
    lines = (LOGS / f"{name}-{part}.log").read_text().splitlines() or ["nothing was said"]
    return lines[-1].strip("= ")


def main(names: Sequence[str]) -> int:
    LOGS.mkdir(exist_ok=True)
    failed = False
    for name in names or RUNS:
        begun = time.monotonic()
        with busy(RUNS[name].busy):
            parts = {
                "slurm": pytest(name, "slurm", "tests/slurm"),
                "rest": pytest(name, "rest", "--ignore=tests/slurm", *RUNS[name].arguments),
            }
            statuses = [process.wait() for process in parts.values()]
        failed |= any(statuses)
        print(f"{name}: {(time.monotonic() - begun) / 60:.1f} minutes")
        for part in parts:
            print(f"  {part:6} {told(name, part)}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
