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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stack.util.errors import UserError
from stack.util.files import fsync

_MEMORY = Path("/dev/shm")
_LOCK = ".lock"

Fetch = Callable[[IO[bytes]], None]
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

    def open(self, address: str, version: str, size: int, fetch: Fetch) -> IO[bytes]:
        """A whole file, open for reading; fetched first if it is not there.

        Args:
            address: where the file comes from, in full. version: its etag or what stands for
                it. size: of the whole file in bytes.

        Raises:
            UserError: the file does not fit into the cache.
        """
        base = address.partition("?")[0].rpartition("/")[2]
        digest = hashlib.sha256(f"{address}\n{version}".encode()).hexdigest()
        path = self.folder / f"{digest[:32]}-{base}"
        hit = True
        while True:
            try:
                file = open(path, "rb", buffering=0)  # noqa: SIM115 (the caller closes it)
            except FileNotFoundError:
                hit = not self._fetch(path, size, fetch) and hit
                continue
            touch(file)
            self.hits += hit
            self.misses += not hit
            return file

    def _fetch(self, path: Path, size: int, fetch: Fetch) -> bool:
        """Bring a file here, unless another process has; returns whether this one did."""
        with _exclusive(path.with_name(f"{path.name}.{size}.part")) as part:
            if path.exists():
                os.unlink(part.name)
                return False
            self._make_room(path, size)
            part.seek(0, os.SEEK_END)
            fetch(part)
            part.flush()
            os.fsync(part.fileno())
            os.replace(part.name, path)
            fsync(self.folder)
        return True

    def _make_room(self, wanted: Path, size: int) -> None:
        """Remove the least recently used files until the limit holds, transfers under way (by
        the size they will have) included."""
        with _exclusive(self.folder / _LOCK):
            sizes = {path: _final_size(path) for path in self.folder.glob("*-*")}
            used = sum(sizes.values())
            for path in sorted(sizes, key=_last_use):
                if used > self.limit and not path.name.startswith(wanted.name):
                    used -= sizes[path] * _remove_idle(path)
        if used > self.limit:
            raise UserError(
                f"data.cache_gb: {self.limit / 1e9:g} GB in {self.folder} cannot hold "
                f"{wanted.name[33:]} of {size / 1e9:g} GB beside what is being fetched; raise it"
            )


def touch(file: IO[bytes]) -> None:
    """Mark an open cached file as used just now."""
    os.utime(file.fileno())


def evicted(file: IO[bytes]) -> bool:
    """Whether an open file has been removed since."""
    return os.fstat(file.fileno()).st_nlink == 0


@contextmanager
def _exclusive(path: Path) -> Iterator[IO[bytes]]:
    """A file of this name, made if need be, that no other process has in this context."""
    while True:
        with open(path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The one who held it may have renamed or removed it.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


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


def _final_size(path: Path) -> int:
    """Bytes a file has or, in transfer, will have; 0 if it has just gone."""
    if path.suffix == ".part":
        return int(path.name.rsplit(".", 2)[1])
    return path.stat().st_size if path.exists() else 0


def _last_use(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
