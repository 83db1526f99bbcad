"""Finding the newest checkpoint that is whole, by its hashes."""

from __future__ import annotations

import json
from pathlib import Path

from stack.checkpoint.commit import COMMIT, committed
from stack.util.errors import UserError
from stack.util.files import sha256_file


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        listing = json.loads((folder / COMMIT).read_text())["files"]
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in listing.items()}
    except FileNotFoundError:
        return f"{COMMIT} is missing"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{COMMIT} is garbled"
    for name, (size, sha256) in expected.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if sha256_file(file) != sha256:
            return f"{name} does not match its SHA-256"
    return None


def latest(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was skipped on the way and why.

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
