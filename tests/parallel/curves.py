"""A recipe's first twenty iterations under every backend against one process:
``python tests/parallel/curves.py RECIPE``, where its teacher and data are; by ``make drill``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.parallel.test_backends import figures

ITERATIONS = 20
RANKS = (2, 4)
BACKENDS = ("ddp", "fsdp", "zero1", "zero2", "zero3")
BARS = {"loss/": 1e-4, "r/": 1e-4, "h/p": 1e-4, "gap/": 1e-4, "grad/": 1e-3}


def train(recipe: str, folder: Path, backend: str, ranks: int) -> Path:
    fields = {
        "out": folder,
        "iterations": ITERATIONS,
        "log.every": 1,
        "log.sample_every": 0,
        "parallel.backend": backend,
        "parallel.processes": ranks,
    }
    command = [sys.executable, "-m", "stack", "distill", recipe]
    done = subprocess.run(
        command + [f"{name}={value}" for name, value in fields.items()],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{backend} on {ranks}: status {done.returncode}: {done.stderr}")
    return folder


def distance(alone: Path, run: Path, kind: str) -> float:
    """Largest relative difference of a kind of figure over all iterations."""
    expected, found = figures(alone, kind), figures(run, kind)
    assert expected.keys() == found.keys() == set(range(1, ITERATIONS + 1))
    return max(
        abs(found[step][name] - value) / max(abs(value), 1e-12)
        for step, row in expected.items()
        for name, value in row.items()
    )


def main(recipe: str) -> int:
    missed = False
    with tempfile.TemporaryDirectory() as root:
        alone = train(recipe, Path(root) / "none", "none", 1)
        print("largest relative difference from one process, 20 iterations")
        print("backend ranks ", *(f"{kind:>9}" for kind in BARS))
        for ranks in RANKS:
            for backend in BACKENDS:
                run = train(recipe, Path(root) / f"{backend}-{ranks}", backend, ranks)
                found = {kind: distance(alone, run, kind) for kind in BARS}
                worse = [kind for kind, bar in BARS.items() if found[kind] > bar]
                missed |= bool(worse)
                row = " ".join(f"{value:9.2g}" for value in found.values())
                print(f"{backend:7} {ranks:5}  {row} {'MISSED' if worse else ''}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
