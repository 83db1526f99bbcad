"""Processes that start at once: forks of one that has imported the libraries already.

Importing torch and diffusers takes several times what a tiny training does. The fork server of
multiprocessing imports them once; each fork has a session, an environment and outputs of its own,
and runs ``python -m MODULE`` from the first line of the project's code, on the CPU.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import patch

from stack.parallel.launch import die_with_parent, places

ROOT = Path(__file__).parent.parent
SECONDS, GRACE = 900, 60

# No fork can use a GPU that its parent has touched, which bitsandbytes does when it is imported.
_OF_THE_SERVER = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": os.environ.get("F_DISTILL_TEST_THREADS", "1"),
    "CUDA_VISIBLE_DEVICES": "",
}
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.libraries"])


def context() -> ForkServerContext:
    """Of multiprocessing, with the fork server running: for workers of the tested code's own."""
    with patch.dict(os.environ, _OF_THE_SERVER):
        forkserver.ensure_running()
    return _CONTEXT


class Fork:
    """A process under way; what it has in common with subprocess.Popen is named as there. It leads
    a session and a group of its own, and ends with the tests at the latest."""

    port: socket.socket | None = None
    """Of a first rank's: held for as long as it may take until that rank listens there."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.args = list(command)
        self._output = Path(tempfile.mkdtemp(dir=_outputs().name))
        arguments = (self.args, {**os.environ, **_OF_THE_SERVER, **env}, self._output)
        self._process = context().Process(target=_child, args=arguments)
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def sentinel(self) -> int:
        """Ready for multiprocessing.connection.wait() once the process has ended."""
        return self._process.sentinel

    def poll(self) -> int | None:
        """Status of a process that has ended, negative the number of the signal that ended it."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        """The status. Raises: subprocess.TimeoutExpired after so many seconds."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that stdout and stderr were given, once the process has ended; as `wait`."""
        self.wait(timeout)
        out, err = ((self._output / name).read_text() for name in ("out", "err"))
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(module: str, *arguments: str | Path) -> Fork:
    """``python -m MODULE ARGUMENTS`` as a process of its own."""
    return Fork([module, *map(str, arguments)], {})


def start_ranks(module: str, *arguments: str | Path, ranks: int) -> list[Fork]:
    """As many processes as torchrun would start, in order of ranks."""
    told = places(ranks)
    port = _held(int(told[0]["MASTER_PORT"]))
    forks = [Fork([module, *map(str, arguments)], place) for place in told]
    forks[0].port = port
    return forks


def _held(port: int) -> socket.socket:
    """Keeps a port from what is given any that is free, until the first rank listens there."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", port))
    return holder


def run(module: str, *arguments: str | Path, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    """``python -m MODULE ARGUMENTS`` to its end: one process or, with ``ranks``, as many as
    torchrun would start. The status is that of the first to fail; outputs are in order of ranks.

    Raises: AssertionError, with what stderr has, if it takes more than `SECONDS`.
    """
    given = (module, *arguments)
    forks = start_ranks(*given, ranks=ranks) if ranks else [start(*given)]
    codes = _codes(forks)
    out, err = map("".join, zip(*(fork.communicate() for fork in forks), strict=True))
    assert codes, f"{forks[0].args}: not within {SECONDS} s\n{err}"
    return subprocess.CompletedProcess(forks[0].args, next(filter(None, codes), 0), out, err)


def _codes(forks: Sequence[Fork]) -> list[int]:
    """Statuses in the order in which the processes end, those left by a failed one killed; none
    where time was up before any had failed."""
    running = {fork.sentinel: fork for fork in forks}
    codes: list[int] = []
    deadline = time.monotonic() + SECONDS
    while running and (ended := wait(list(running), deadline - time.monotonic())):
        for sentinel in ended:
            code = running.pop(sentinel).wait()  # type: ignore[arg-type]
            codes.append(code)
            if code:
                deadline = min(deadline, time.monotonic() + GRACE)
    for fork in running.values():
        fork.kill()
    return codes if any(codes) or not running else []


def _child(command: list[str], env: dict[str, str], output: Path) -> None:
    """What a fork does; from here on it is like a process that was started from a shell."""
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), descriptor)
    assert "torch" in sys.modules, "tests/libraries.py could not be imported"
    die_with_parent()
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # What Linux has, for workers of its own.
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


@cache
def _outputs() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="forks-")


@atexit.register
def _end() -> None:
    """What a failed test has left would be waited for otherwise, for hours."""
    for child in multiprocessing.active_children():
        child.kill()
    _outputs().cleanup()
