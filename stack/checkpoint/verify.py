"""Finding the newest checkpoint that is whole, by its hashes."""

from __future__ import annotations

import json
from pathlib import Path

from stack.checkpoint.commit import ALONE, Peers
from stack.checkpoint.folders import COMMIT, committed, is_step, step_of
from stack.util.errors import UserError
from stack.util.files import sha256_file


def fault(folder: Path, peers: Peers = ALONE) -> str | None:
    """What is wrong with a checkpoint folder, or None.

    Args:
        peers: the ranks that share the reading; all call this together and get the same answer.
    """
    expected: dict[str, tuple[int, str]] = {}
    reason = None
    try:
        listing = json.loads((folder / COMMIT).read_text())["files"]
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in listing.items()}
    except FileNotFoundError:
        reason = f"{COMMIT} is missing" if folder.is_dir() else "no such checkpoint"
    except OSError as error:
        reason = f"{COMMIT} cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError):
        reason = f"{COMMIT} is garbled"
    # The largest first, so that the ranks' shares come out alike.
    names = sorted(expected, key=lambda name: (-int(expected[name][0]), name))
    own = names[peers.rank :: peers.world_size]
    faults = (_file_fault(folder / name, name, *expected[name]) for name in own)
    found = reason or next(filter(None, faults), None)
    return next(filter(None, peers.gather(found)), None)


def _file_fault(file: Path, name: str, size: int, sha256: str) -> str | None:
    try:
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        return None if sha256_file(file) == sha256 else f"{name} does not match its SHA-256"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def latest(root: Path, peers: Peers = ALONE) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was skipped on the way and why.

    Args:
        peers: as for :func:`fault`; the first rank says which checkpoints there are.

    Returns: (None, []) where there is no checkpoint at all.

    Raises:
        UserError: there are checkpoints, but none verifies.
    """
    skipped: list[str] = []
    for folder in reversed(peers.gather(committed(root))[0]):
        reason = fault(folder, peers)
        if reason is None:
            return folder, skipped
        skipped.append(f"{folder}: {reason}")
    if skipped:
        raise UserError(
            f"{root}: no checkpoint verifies ({'; '.join(skipped)}); restore one, or start "
            "afresh with --overwrite"
        )
    return None, []


def checkpoint_of(path: Path, what: str = "", peers: Peers = ALONE) -> Path:
    """The checkpoint that a path names: the folder of one, or the newest whole one of a run.

    Args:
        what: field or option that named it, with a colon and a blank, for messages.
        peers: as for :func:`latest`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if is_step(path):
        reason = fault(path, peers)
        if reason is None:
            return path
        steps = ", ".join(str(step_of(other)) for other in committed(path.parent)) or "none"
        raise UserError(f"{what}{path}: {reason}; there are steps {steps}")
    found, skipped = latest(path / "checkpoints", peers)
    for reason in skipped if peers.rank == 0 else ():
        print(f"skipped checkpoint {reason}")
    if found is None:
        raise UserError(f"{what}{path}: checkpoints/: none yet; run stack distill first")
    return found
