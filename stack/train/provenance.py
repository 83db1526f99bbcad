"""What a start of a run ran on, as one line of provenance.jsonl."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "webdataset",
    "deepspeed",
    "xformers",
    "bitsandbytes",
    "numpy",
    "safetensors",
)


def provenance(*, code_hash: str, seed: int, backend: str, devices: list[str]) -> str:
    """A JSON line: time, command, code, packages, machine, devices by rank, seed.

    Args:
        code_hash: of the code that runs. devices: names, by rank.
    """
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": _git(Path(__file__).parent),
        "code": code_hash,
        "python": platform.python_version(),
        "packages": _versions(),
        "cuda": torch.version.cuda,
        "host": socket.gethostname(),
        "system": platform.platform(),
        "backend": backend,
        "devices": devices,
        "seed": seed,
        "job": os.environ.get("SLURM_JOB_ID"),
    }
    return json.dumps(facts) + "\n"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit of the work tree that tracks the code, and whether tracked files differ from it;
    None where there is no such tree."""

    def ask(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, check=False
        )

    try:
        tracked = ask("ls-files", "--error-unmatch", Path(__file__).name)
    except FileNotFoundError:  # No git on this machine.
        return None
    if tracked.returncode:
        return None
    commit = ask("rev-parse", "HEAD")
    changed = ask("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return {"commit": commit.stdout.strip(), "changed": bool(changed)}
