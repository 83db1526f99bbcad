"""``python -m tests.train.gated FILE ITERATION ARGUMENTS``: the command line, whose distillation
waits before an iteration, counted from 0, until FILE is there; FILE.reached says that it waits."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from stack.cli import main
from stack.fdistill.algorithm import FDistill


def wait_at(gate: Path, iteration: int) -> None:
    original = FDistill.iteration

    def gated(self: FDistill, number: int, batches: Any) -> Any:
        if number == iteration:
            gate.with_suffix(".reached").touch()
            while not gate.exists():
                time.sleep(0.01)
        return original(self, number, batches)

    FDistill.iteration = gated  # type: ignore[method-assign]


if __name__ == "__main__":
    wait_at(Path(sys.argv[1]), int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
