"""Stand-ins for a virtual environment's python, as a job's VENV has it in bin/."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import indent

from tests.forked import ROOT

_SOURCE = """\
#!{python} -IS
import functools, os, signal, subprocess, sys, time

folder, command = {folder!r}, sys.argv[1:]
restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
if command[:3] == ["-m", "stack", "job"]:
    part = command[3]
{noting}
    os.execv({python!r}, [{python!r}, *command])
number = int(os.environ.get("RANK", "0"))
{rank}
"""
_SIGNED = """\
with open(f"{os.environ['LOGS']}/rank-{number}.pid", "w") as file:
    file.write(str(os.getpid()))
"""


def interpreter(folder: Path, rank: str, noting: str = "") -> Path:
    """A VENV in ``folder`` whose python does what the source ``rank`` says instead of the work, as
    the rank with that ``number``. What notes the job (`stack job`) is real, but does ``noting``
    before, which knows whether it is at the "begin" or the "end", its ``part``. Both know the
    job's ``restart``, and the ``folder``."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    file = folder / "bin" / "python"
    source = _SOURCE.format(
        python=sys.executable, folder=str(folder), noting=indent(noting, "    "), rank=rank
    )
    file.write_text(source)
    file.chmod(0o755)
    return folder


def ranks(folder: Path, rank: str, noting: str = "") -> Path:
    """The same for ranks, each of which leaves its process's number beside its log."""
    return interpreter(folder, _SIGNED + rank, noting)


def forking(folder: Path, socket: Path) -> Path:
    """The same whose ranks are forks (forks.py) and do the work."""
    rank = f"sys.path.insert(0, {str(ROOT)!r})\nfrom tests.slurm import forks\n"
    return interpreter(folder, f"{rank}forks.ask({str(socket)!r}, command)")
