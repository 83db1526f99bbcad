"""What a process settles when it starts: before torch is there, and never over the user's word."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stack.util import process
from tests.forked import ROOT

SPINS = str(process.SPINS)
CASES: dict[str, tuple[dict[str, str], dict[str, str], bool]] = {
    # the environment, what is added to it, whether freed memory is kept
    "nothing": ({}, {"GOMP_SPINCOUNT": SPINS}, True),
    "a policy": ({"OMP_WAIT_POLICY": "active"}, {}, True),
    "a count": ({"GOMP_SPINCOUNT": "7"}, {}, True),
    "glibc's variables": ({"MALLOC_ARENA_MAX": "2"}, {"GOMP_SPINCOUNT": SPINS}, False),
    "glibc's tunables": (
        {"GLIBC_TUNABLES": "glibc.malloc.check=1"},
        {"GOMP_SPINCOUNT": SPINS},
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_user_has_set_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, added, kept = CASES[name]
    told: list[bool] = []
    monkeypatch.setattr(process, "_keep_freed_memory", lambda: told.append(True))
    monkeypatch.setattr(os, "environ", environment := dict(given))
    process.settle()
    assert environment == given | added
    assert bool(told) == kept


@pytest.mark.parametrize("package", ["stack", "data_prep"])
def test_a_command_line_settles_before_it_loads_torch(package: str) -> None:
    program = (
        "import atexit, os, runpy, sys\n"
        "told = lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)\n"
        "atexit.register(told)\n"
        f"sys.argv = ['{package}', '--help']\n"
        f"runpy.run_module('{package}', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name[:4] not in ("GOMP", "OMP_")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{SPINS} False"
