"""Finding the newest checkpoint that is whole, by its hashes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stack.checkpoint.commit import COMMIT, committed
from stack.util.errors import UserError
from stack.util.files import sha256_file


def fault(
    folder: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> str | None:
    """What is wrong with a checkpoint folder, or None.

    Args:
        rank, world_size, gather: the ranks that share the reading, if there are several; all
            call this together and get the same answer.
    """
    expected: dict[str, tuple[int, str]] = {}
    reason = None
    try:
        listing = json.loads((folder / COMMIT).read_text())["files"]
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in listing.items()}
    except FileNotFoundError:
        reason = f"{COMMIT} is missing"
    except (ValueError, TypeError, KeyError, AttributeError):
        reason = f"{COMMIT} is garbled"
    # The largest first, so that the ranks' shares come out alike.
    names = sorted(expected, key=lambda name: (-int(expected[name][0]), name))
    faults = (_file_fault(folder / name, name, *expected[name]) for name in names[rank::world_size])
    found = reason or next(filter(None, faults), None)
    return next(filter(None, gather(found)), None)


def _file_fault(file: Path, name: str, size: int, sha256: str) -> str | None:
    if not file.is_file():
        return f"{name} is missing"
    if file.stat().st_size != size:
        return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None if sha256_file(file) == sha256 else f"{name} does not match its SHA-256"


def latest(
    root: Path, fault: Callable[[Path], str | None] = fault
) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was skipped on the way and why.

    Args:
        fault: what is wrong with a folder.

    Returns: (None, []) where there is no checkpoint at all.

    Raises:
        UserError: there are checkpoints, but none verifies.
    """
    skipped: list[str] = []
    for folder in reversed(committed(root)):
        reason = fault(folder)
        if reason is None:
            return folder, skipped
        skipped.append(f"{folder}: {reason}")
    if skipped:
        raise UserError(
            f"{root}: no checkpoint verifies ({'; '.join(skipped)}); restore one, or start "
            "afresh with --overwrite"
        )
    return None, []
