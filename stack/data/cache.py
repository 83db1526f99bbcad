"""ShardCache: files from afar, kept on this node's disk up to a limit.

Several processes may share one folder. A transfer goes into a `.part` file under an exclusive
lock, so one process fetches what the others wait for, and a part that a killed process left is
continued where it ends. A file gets its own name only when it is whole and checked. The least
recently used files make room; who has one open can read on, sees that it is `evicted`, and lets
go, because only then does the disk space come back.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from stack.util.errors import UserError
from stack.util.files import fsync
from stack.util.retry import FULL, reason

_MEMORY = Path("/dev/shm")
_LOCK = ".lock"
_PATIENCE, _POLL = 300.0, 0.2
"""Seconds that a file waits for transfers of other processes to end, and between two looks."""
_OURS = re.compile(r"[0-9a-f]{32}-.+")
"""Names of cached files and parts; anything else in the folder is somebody's and stays."""

Fetch = Callable[[FileIO], None]
"""Appends to a file, from its present end on, what it lacks, and checks the whole."""


class ShardCache:
    """A folder of at most `limit` bytes. `hits` and `misses` count this process's `open` calls.

    Raises:
        UserError: the folder lies in memory (/dev/shm) or cannot be made.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.hits = self.misses = 0
        if _MEMORY in (folder.resolve(), *folder.resolve().parents):
            raise UserError(f"data.cache: {folder}: is memory, not a disk; name another folder")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache: {folder}: {error.strerror}") from None

    def open(self, address: str, version: str, size: int, fetch: Fetch) -> FileIO:
        """A whole file, open for reading; fetched first if it is not there.

        Args:
            address: where the file comes from, in full. version: its etag or what stands for
                it. size: of the whole file in bytes.

        Raises:
            UserError: the file is larger than the cache, or does not fit beside the transfers of
                other processes for five minutes; or the disk is full.
        """
        base = address.partition("?")[0].rpartition("/")[2]
        digest = hashlib.sha256(f"{address}\n{version}".encode()).hexdigest()
        path = self.folder / f"{digest[:32]}-{base}"
        hit, deadline = True, time.monotonic() + _PATIENCE
        while True:
            try:
                file = open(path, "rb", buffering=0)  # noqa: SIM115 (the caller closes it)
            except FileNotFoundError:
                try:
                    hit = not self._fetch(path, size, fetch) and hit
                except _CrowdedError:
                    if size > self.limit or time.monotonic() >= deadline:
                        raise UserError(self._too_big(path, size)) from None
                    time.sleep(_POLL)
                continue
            touch(file)
            self.hits += hit
            self.misses += not hit
            return file

    def _fetch(self, path: Path, size: int, fetch: Fetch) -> bool:
        """Bring a file here, unless another process has; returns whether this one did.

        Raises _CrowdedError without the part's lock, so that nobody waits for who waits.
        """
        with _exclusive(path.with_name(f"{path.name}.{size}.part")) as part:
            if path.exists():
                os.unlink(part.name)
                return False
            self._make_room(size, part)
            part.seek(0, os.SEEK_END)
            try:
                fetch(part)
                os.fsync(part.fileno())
            except OSError as error:
                if error.errno in FULL:
                    raise UserError(f"data.cache: {self.folder}: {reason(error)}") from None
                raise
            with _exclusive(self.folder / _LOCK):
                os.replace(part.name, path)
            fsync(self.folder)
        return True

    def _make_room(self, size: int, part: FileIO) -> None:
        """Remove the least recently used files until the limit holds, transfers under way (by
        the size they will have) included. _CrowdedError if these alone are too much; then an
        empty part is gone before the next process looks, so that of several, one has room."""
        with _exclusive(self.folder / _LOCK):
            files = self._files()
            busy = sum(bytes_ for _, bytes_, path in files if _is_written(path))
            used = sum(bytes_ for _, bytes_, _ in files)
            if max(size, busy) <= self.limit:
                for _, bytes_, path in files:
                    if used > self.limit:
                        used -= bytes_ * _remove_idle(path)
            if used > self.limit:
                if not os.fstat(part.fileno()).st_size:
                    os.unlink(part.name)
                raise _CrowdedError

    def _too_big(self, path: Path, size: int) -> str:
        beside = "" if size > self.limit else " beside what is being fetched"
        return (
            f"data.cache_gb: {self.limit / 1e9:g} GB in {self.folder} cannot hold "
            f"{path.name[33:]} of {size / 1e9:g} GB{beside}; raise it"
        )

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use, bytes and path of what is here, the least recently used first; of a part the
        bytes it has or will have."""
        found = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # A part that another process has just renamed.
                if _OURS.fullmatch(path.name):
                    about = path.stat()
                    part = path.suffix == ".part"
                    will = int(path.name.rsplit(".", 2)[1]) if part else 0
                    found.append((about.st_mtime, max(will, about.st_size), path))
        return sorted(found)


class _CrowdedError(Exception):
    """Transfers under way leave too little room."""


def touch(file: FileIO) -> None:
    """Mark an open cached file as used just now."""
    os.utime(file.fileno())


def evicted(file: FileIO) -> bool:
    """Whether an open file has been removed since."""
    return os.fstat(file.fileno()).st_nlink == 0


@contextmanager
def _exclusive(path: Path) -> Iterator[FileIO]:
    """A file of this name, made if need be, that no other process has in this context."""
    while True:
        with open(path, "ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The one who held it may have renamed or removed it.
            if _lies_at(file, path):
                yield file
                return


def _lies_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_written(path: Path) -> bool:
    """Whether this is a part that a process is writing."""
    if path.suffix != ".part":
        return False
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _remove_idle(path: Path) -> bool:
    """Remove a file or an abandoned part; False for a part that a process is writing."""
    try:
        with open(path, "rb") as file:
            if path.suffix == ".part":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True
