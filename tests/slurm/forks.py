"""Ranks that start at once: forks of one process that has imported the libraries.

``python -m tests.slurm.forks SOCKET`` is that process, itself a fork of tests/forked.py's. What
Slurm starts as a rank asks it for a fork with its own arguments, environment, folder and outputs,
hands on its signals and ends as it does; once it is killed, the fork is. In the folder GATES, if
the environment names one, a file stops each rank before the iteration whose number is its name,
until the file is gone or the rank is signalled; a file ITERATION-RANK says that a rank is there.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn


def ask(server: str, command: Sequence[str]) -> NoReturn:
    """Be the fork that runs ``python COMMAND``."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server)
        socket.send_fds(connection, [b"x"], [0, 1, 2])
        asked = {"command": command, "env": dict(os.environ), "folder": os.getcwd()}
        connection.sendall(json.dumps(asked).encode() + b"\n")
        answers = connection.makefile()
        fork = int(answers.readline())

        def hand_on(number: int, frame: object) -> None:
            with suppress(ProcessLookupError):
                os.kill(fork, number)

        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, hand_on)
        code = int(answers.readline() or "1")
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(path: str) -> NoReturn:
    import gc

    import stack.config.load  # noqa: F401  # Not stack.util.clock, which notes when a rank began.

    gc.collect()
    gc.freeze()  # What is collected is written to, and what is written to is copied.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for those who wait.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                _wait(connection)
            connection.close()


def _wait(connection: socket.socket) -> NoReturn:
    """Fork as it is asked, and say how that ends."""
    from stack.parallel.launch import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, outputs, _, _ = socket.recv_fds(connection, 1, 3)
    asked = json.loads(connection.makefile().readline())
    if not (fork := os.fork()):
        connection.close()
        die_with_parent()
        _become(asked, outputs)
    for output in outputs:
        os.close(output)

    def kill() -> None:
        """Once the other side is gone."""
        if not connection.recv(1):
            os.kill(fork, signal.SIGKILL)

    connection.sendall(f"{fork}\n".encode())
    threading.Thread(target=kill, daemon=True).start()
    _, status = os.waitpid(fork, 0)
    with suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(asked: dict[str, Any], outputs: Sequence[int]) -> NoReturn:
    """The process that was asked for, to its end. An interpreter that ends in order would take the
    libraries down one by one, for longer than they are needed."""
    import runpy
    import traceback

    for target, output in enumerate(outputs):
        os.dup2(output, target)
        os.close(output)
    os.setsid()
    os.environ.clear()
    os.environ.update(asked["env"] | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    os.chdir(asked["folder"])
    _, module, *arguments = asked["command"]
    sys.argv = [module, *arguments]
    if "LOGS" in os.environ:
        Path(f"{os.environ['LOGS']}/rank-{os.environ['RANK']}.pid").write_text(f"{os.getpid()}")
    if "GATES" in os.environ:
        _stop_at(Path(os.environ["GATES"]))
    code: object = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _stop_at(gates: Path) -> None:
    import select

    from stack.fdistill.algorithm import FDistill

    original = FDistill.iteration
    signalled, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)

    def iteration(self: FDistill, number: int, batches: Any) -> Any:
        if (gate := gates / str(number)).exists():
            (gates / f"{number}-{os.environ['RANK']}").touch()
            while gate.exists() and not select.select([signalled], [], [], 0.05)[0]:
                pass
        return original(self, number, batches)

    FDistill.iteration = iteration  # type: ignore[method-assign]


if __name__ == "__main__":
    serve(sys.argv[1])
