"""Where folders of shards lie: on a disk of this machine, or behind a URL.

Remote folders are read through fsspec (s3://, gs://, hf://, https://, ...); their shards come
through a `ShardCache`, and are checked against the manifest before they are used. A URL may hold
a password or a signed query: it is shown without them, and so are the errors of libraries.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, unquote

import braceexpand
import fsspec

from stack.data.cache import ShardCache, evicted, touch
from stack.data.index import MANIFEST, Manifest, check_shards
from stack.util.errors import UserError
from stack.util.retry import FINAL, reason, retry

_PIECE = 8 << 20
"""Bytes of one ranged request: what a cut transfer loses at most."""
_VERSION = ("ETag", "etag", "md5Hash", "generation", "blob_id", "LastModified", "mtime", "created")
"""What tells two versions of a remote file apart, by whatever name a filesystem has for it."""
_FINAL_HERE = tuple(kind for kind in FINAL if kind is not FileNotFoundError)
"""Final errors of a file that the manifest lists: HTTP filesystems call any failure not found."""
_URL = re.compile(r"\w+://\S*?(?=['\")>,:;]*(?:\s|$))")
"""A URL in a text, up to white space: a password or a query may hold any other character."""
_PASSWORD = re.compile(r"(?!\[).*:(?!\d*$)")
"""A host and its port do not look so: it is what a password was cut from."""
_UNQUOTED = re.compile(r"\w+://[^/?#@]*:(?!\d+[/?])[^/?#@]*[/?#].*@", re.DOTALL)
"""A password that libraries would take for parts of the URL, and show."""
_AT_IN_NAMES = ("abfs", "abfss", "hf")
"""Where an @ parts names: abfs://container@account, hf://repository@revision."""

Value = TypeVar("Value")


class Folder(Protocol):
    """A folder of shards; `str` gives its name for messages."""

    def manifest(self) -> Manifest:
        """Read and check the manifest; UserError names the file and field at fault."""

    def check(self, manifest: Manifest) -> None:
        """Compare the files with the manifest as far as this is cheap."""

    def file(self, name: str) -> str:
        """The name of one of its files for messages."""

    def open(self, name: str, sha256: str, size: int | None = None) -> FileIO:
        """A file that the manifest lists, opened unbuffered for positioned reads."""

    def keep(self, file: FileIO, *, used: bool) -> bool:
        """Whether to keep an open file open; `used`: whether it was just read."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk that this machine sees."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def manifest(self) -> Manifest:
        return Manifest.read(self.path)

    def check(self, manifest: Manifest) -> None:
        check_shards(self.path, manifest.shards)

    def file(self, name: str) -> str:
        return str(self.path / name)

    def open(self, name: str, sha256: str, size: int | None = None) -> FileIO:
        return open(self.path / name, "rb", buffering=0)

    def keep(self, file: FileIO, *, used: bool) -> bool:
        return True


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind a URL. `retries`: tries after the first of a request that fails."""

    url: str = field(repr=False)
    cache: ShardCache = field(compare=False)
    retries: int = field(default=6, compare=False)

    def __str__(self) -> str:
        return shown(self.url)

    def file(self, name: str) -> str:
        return shown(self._address(name))

    def manifest(self) -> Manifest:
        def read() -> bytes:
            system, path = _filesystem(self._address(MANIFEST))
            try:
                return system.cat_file(path)
            except FileNotFoundError:
                raise UserError(
                    f"{here}: missing; the folder is empty, unfinished or not of shards"
                ) from None

        here = self.file(MANIFEST)
        return Manifest.parse(_retry(read, self._address(MANIFEST), self.retries), here)

    def check(self, manifest: Manifest) -> None:
        """Nothing: a shard's size and checksum are compared when it is fetched."""

    def open(self, name: str, sha256: str, size: int | None = None) -> FileIO:
        def open_() -> FileIO:
            system, path = _filesystem(self._address(name))
            about = system.info(path)
            there = about.get("size")
            if size is not None and there not in (size, None):
                raise UserError(
                    f"{self.file(name)}: bytes: {there} there, {size} in {MANIFEST}; "
                    "the tar was cut short or replaced"
                )
            whole = there if size is None else size
            version = " ".join([sha256, *(str(about[key]) for key in _VERSION if key in about)])

            def fetch(part: FileIO) -> None:
                self._transfer(name, system, path, part, whole)
                part.seek(0)
                if hashlib.file_digest(part, "sha256").hexdigest() != sha256:
                    part.truncate(0)
                    raise _WrongBytesError("sha256 is not the one that the manifest lists")

            return self.cache.open(self._address(name), version, whole or 0, fetch)

        return _retry(open_, self._address(name), self.retries, _FINAL_HERE)

    def keep(self, file: FileIO, *, used: bool) -> bool:
        """False for a file that has been evicted: only closing it frees its disk space."""
        if evicted(file):
            return False
        if used:
            touch(file)
        return True

    def _transfer(self, name: str, system: Any, path: str, part: FileIO, whole: int | None) -> None:
        """Append what the part lacks, piece by piece; each piece that is written stays."""
        if whole is None:
            part.truncate(0)
            _append(part, system.cat_file(path))
            return
        while (have := part.tell()) < whole:
            end = min(have + _PIECE, whole)

            def piece(start: int = have, end: int = end) -> bytes:
                return system.cat_file(path, start=start, end=end)

            data = _retry(piece, self._address(name), self.retries, _FINAL_HERE)
            if len(data) == whole > end - have:
                part.truncate(0)  # The server knows no ranges and sent everything.
            elif len(data) > end - have or not data:
                raise _WrongBytesError(f"{len(data)} bytes came for a request of {end - have}")
            _append(part, data)

    def _address(self, name: str) -> str:
        base, query = _halves(self.url)
        return f"{base.rstrip('/')}/{name}{query}"


class _WrongBytesError(OSError):
    """What came is not what was asked for."""


def is_url(spec: str | Path) -> bool:
    return "://" in os.fspath(spec)


def shown(url: str) -> str:
    """A URL without its user, password and query; of one in which these cannot be told apart
    from the rest, only the kind. A path stays as it is."""
    kind, mark, rest = url.partition("://")
    if not mark:
        return url
    head, question, query = rest.partition("?")
    authority, _, _ = head.partition("/")
    if "@" in query and (":" in authority or authority == head):
        return f"{kind}://***"
    if "@" not in head and _PASSWORD.match(authority):
        return f"{kind}://***"
    if ":" in authority:
        head = head.rpartition("@")[2]
    elif kind not in _AT_IN_NAMES:
        head = authority.rpartition("@")[2] + head[len(authority) :]
    pattern = "" if query.strip("?*/") else question + query
    return f"{kind}://{head.partition('#')[0]}{pattern}"


def redact(text: str, *urls: str) -> str:
    """A text, such as a library's error, without what is secret in these URLs, which it may hold
    in whole or in part, or in whatever else looks like a URL in it."""
    for url in urls:
        user, query = url.partition("://")[2].rpartition("@")[0], url.partition("?")[2]
        text = text.replace(url, shown(url))
        for secret in (user if ":" in user else "", query):
            for written in (secret, quote(secret, safe=":"), unquote(secret)):
                # Shorter ones are found in any word.
                text = text.replace(written, "***") if len(written) > 3 else text
    return _URL.sub(lambda found: shown(found[0]), text)


def expand_variables(spec: str) -> str:
    """A path or URL with its $VARIABLES replaced; UserError names one that is not set."""
    for name in re.findall(r"\$\{?(\w+)", spec):
        if name not in os.environ:
            raise UserError(f"{shown(spec)}: ${name}: this variable is not set")
    return os.path.expandvars(spec)


def expand(spec: str | Path, cache: ShardCache | None = None, retries: int = 6) -> list[Folder]:
    """The folders that a path or URL with $VARIABLES, braces and globs stands for, in order.

    Raises:
        UserError: a variable is not set, a pattern matches nothing or is empty, or a URL has no
            cache.
    """
    text = expand_variables(os.fspath(spec))
    folders: list[Folder] = []
    try:
        patterns = list(braceexpand.braceexpand(text))
    except ValueError:
        raise UserError(f"{shown(text)}: a brace that is not closed or not opened") from None
    for pattern in patterns:
        if not pattern:
            raise UserError(f"data.folders: {os.fspath(spec)!r}: an empty name; name a folder")
        if not is_url(pattern):
            matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
            folders += [LocalFolder(Path(match)) for match in matches]
        elif cache is None:
            raise UserError(f"{shown(pattern)}: a URL needs a cache on this machine")
        elif _UNQUOTED.match(pattern):
            raise UserError(
                f"{shown(pattern)}: its password holds /, ? or #; write %2F, %3F or %23 for them"
            )
        else:
            matches = _remote_glob(pattern, retries)
            folders += [RemoteFolder(match, cache, retries) for match in matches]
        if not matches:
            raise UserError(f"{shown(pattern)}: no folder matches this pattern")
    return folders


def _remote_glob(pattern: str, retries: int) -> list[str]:
    base, query = _halves(pattern)
    if not glob.has_magic(base):
        return [pattern]

    def find() -> list[str]:
        system, path = _filesystem(base)
        return [system.unstrip_protocol(name) for name in sorted(system.glob(path))]

    return [f"{name}{query}" for name in _retry(find, pattern, retries)]


def _halves(url: str) -> tuple[str, str]:
    """A URL up to its query, and that; where no query can be, a bare ? is a pattern."""
    base, mark, query = url.partition("?")
    if "=" in query or url.startswith(("http://", "https://")):
        return base, mark + query
    return url, ""


def _filesystem(address: str) -> tuple[Any, str]:
    """fsspec's filesystem, which it makes anew in a forked process, and the path in it."""
    try:
        return fsspec.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{shown(address)}: {redact(reason(error), address)}") from None


def _retry(
    action: Callable[[], Value],
    address: str,
    retries: int,
    final: tuple[type[Exception], ...] = FINAL,
) -> Value:
    # Filesystems raise what their libraries do, so any exception may be a passing one.
    def tell(error: Exception) -> str:
        """A library's error, by its cause if that is told, without secrets."""
        if isinstance(error, FileNotFoundError) and not error.__cause__:
            return "no such file"
        return redact(reason(error.__cause__ or error), address)

    transient = (Exception,)
    return retry(
        action, shown(address), retries=retries, transient=transient, final=final, tell=tell
    )


def _append(part: FileIO, data: bytes) -> None:
    """All of the data: an unbuffered write may do less, and says only the next time why."""
    rest = memoryview(data)
    while rest:
        rest = rest[part.write(rest) :]
