"""Processes that start at once: forks of one that has imported the libraries already.

Importing torch and diffusers takes several times what a tiny training does. The fork server of
multiprocessing imports them once; each fork has a session, an environment and outputs of its own,
and runs ``python -m MODULE`` from the first line of the project's code, on the CPU.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest.mock import patch

from stack.parallel.launch import places

ROOT = Path(__file__).parent.parent
SECONDS, GRACE = 300, 30

# No fork can use a GPU that its parent has touched, which bitsandbytes does when it is imported.
_OF_THE_SERVER = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.libraries"])


def run(module: str, *arguments: str, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    """``python -m MODULE ARGUMENTS`` to its end: one process or, with ``ranks``, as many as
    torchrun would start. The status is that of the first to fail; outputs are in order of ranks.

    Raises: AssertionError, with what stderr has, if it takes more than `SECONDS`.
    """
    command = [module, *arguments]
    with tempfile.TemporaryDirectory() as folder:
        told = places(ranks) if ranks else [{}]
        outputs = [Path(folder) / str(rank) for rank in range(len(told))]
        with patch.dict(os.environ, _OF_THE_SERVER):
            children = [
                _CONTEXT.Process(target=_child, args=(command, {**os.environ, **place}, output))
                for place, output in zip(told, outputs, strict=True)
            ]
            for child in children:
                child.start()
        codes = _codes(children)
        out, err = (
            "".join(path.with_suffix(suffix).read_text() for path in outputs)
            for suffix in (".out", ".err")
        )
    assert codes, f"{command}: not within {SECONDS} s\n{err}"
    return subprocess.CompletedProcess(command, next(filter(None, codes), 0), out, err)


def _codes(children: Sequence[ForkServerProcess]) -> list[int | None]:
    """Statuses in the order in which the processes end, those left by a failed one killed; none
    where time was up before any had failed."""
    running = {child.sentinel: child for child in children}
    codes: list[int | None] = []
    deadline = time.monotonic() + SECONDS
    while running and (ended := wait(list(running), deadline - time.monotonic())):
        for sentinel in ended:
            child = running.pop(sentinel)  # type: ignore[arg-type]
            child.join()
            codes.append(child.exitcode)
            if child.exitcode:
                deadline = min(deadline, time.monotonic() + GRACE)
    for child in running.values():
        child.kill()
        child.join()
    return codes if any(codes) or not running else []


def _child(command: list[str], env: dict[str, str], output: Path) -> None:
    """What a fork does; from here on it is like a process that was started from a shell."""
    for suffix, descriptor in ((".out", 1), (".err", 2)):
        os.dup2(os.open(output.with_suffix(suffix), os.O_WRONLY | os.O_CREAT), descriptor)
    assert "torch" in sys.modules, "tests/libraries.py could not be imported"
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # What Linux has, for workers of its own.
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
