"""The doctor's checks of disks: room for two checkpoints, and a run folder that all ranks share."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

from stack.util.errors import UserError
from stack.verbs.doctor_board import Board
from stack.verbs.doctor_findings import Finding, Level, attempt, figure

_CHECKPOINTS = 2
"""The newest one stays until the next one is committed."""
_TEMPORARY = 2e9
"""Bytes that the temporary folder should have free, for compilers' and libraries' files."""
_SEEN = 10.0
"""Seconds until a node sees what another one wrote; NFS keeps attributes for a while."""
_ANSWER = 20.0
"""Seconds to wait for the first rank to have written."""
_NOTE = "beacon"


def space(out: Path, checkpoint_bytes: int, board: Board) -> Iterator[Finding]:
    """Free space, and whether files can be written, read back and seen by every rank.

    Args:
        out: run folder; its nearest existing parent stands for it.
    """
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    needed, free = _CHECKPOINTS * checkpoint_bytes, shutil.disk_usage(folder).free
    take = f"{figure(needed / 1e9)} GB that {_CHECKPOINTS} checkpoints take"
    if free < needed:
        yield Finding("fail", f"{folder}: less free than the {take}; set out=", free / 1e9, "GB")
    else:
        yield Finding("ok", f"{folder}: free beside the {take}:", free / 1e9, "GB")
    # The first rank's file stays until the end, for the others to look at.
    mark = folder / f".doctor-{uuid4().hex}"
    written = attempt(partial(_write, mark))
    if board.first:
        board.write(_NOTE, "" if written else str(mark))
    else:
        mark.unlink(missing_ok=True)
    yield from written or [Finding("ok", f"{folder}: written, synced and read back")]
    if board.world_size > 1:
        yield from attempt(partial(_shared, board))
    temporary = Path(tempfile.gettempdir())
    free = shutil.disk_usage(temporary).free
    level: Level = "ok" if free >= _TEMPORARY else "warn"
    yield Finding(level, f"{temporary}: temporary folder, free:", free / 1e9, "GB")


def clear(board: Board) -> None:
    """Remove what the first rank has left for the others, once they have looked."""
    for path in filter(None, board.read_all(_NOTE).values()):
        Path(path).unlink(missing_ok=True)


def _write(path: Path) -> Iterator[Finding]:
    with open(path, "w") as file:
        file.write(path.name)
        file.flush()
        os.fsync(file.fileno())
    if path.read_text() != path.name:
        yield Finding("fail", f"{path}: not read back as it was written; do not use this disk")


def _shared(board: Board) -> Iterator[Finding]:
    """Whether this rank sees the first one's file."""
    name = board.read(_NOTE, 0, _ANSWER)
    if not name:
        return
    path, deadline = Path(name), time.monotonic() + _SEEN
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    if not path.is_file() or path.read_text() != path.name:
        raise UserError(
            f"{path.parent}: does not show within {_SEEN:.0f} s what rank 0 wrote there; the run "
            "folder must be one that all nodes share (out=)"
        )
    yield Finding("ok", f"{path.parent}: shared by the ranks")
