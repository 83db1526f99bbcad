"""Files that are either wholly there or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stack.util.errors import UserError


def fsync(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` by a temporary file, fsync and rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with named(path), os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return parse_json(Path(path).read_bytes(), path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None


def parse_json(data: bytes, path: str | Path) -> Any:
    """The value of JSON bytes that came from ``path``; UserError if they are none."""
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); restore or rebuild it") from None


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """An OSError inside the context names ``path``, if it names no file: a full disk tells no
    one which file it was that did not fit."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """torch.save says of a disk that refuses to take ``path`` that an "enforce" failed; here that
    is an OSError again."""
    try:
        yield
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        raise OSError(errno.EIO, "not written; is the disk full?", str(path)) from error


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
