"""Reading a pickle without running anything that it names.

A pickle is a program: it names globals and has them called. Here each name must be on a list, and
what it yields is no function or class of that name but an inert :class:`Call` that keeps the
arguments. Whoever knows the file's layout reads the calls afterwards, and may have some names built
as plain containers.

Nothing that a file holds is run. Time and memory are bounded by its size in the ways that are known
to be cheap to abuse, not in every way: read what strangers send on a machine that may fail.
"""

from __future__ import annotations

import pickle
import pickletools
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from stack.util.errors import UserError
from stack.util.retry import reason

_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


def shown(value: object) -> str:
    """What a file holds as a part of an error's line: quoted, escaped and cut to 80 characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Call:
    """What a pickle would have had made: its name, the arguments and the state to be set."""

    name = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Call:
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Inert(pickle.Unpickler):
    def __init__(
        self,
        file: IO[bytes],
        path: str | Path,
        allowed: Collection[str],
        plain: Mapping[str, type],
        encoding: str,
    ) -> None:
        super().__init__(file, encoding=encoding)
        self.path, self.allowed, self.plain = path, allowed, plain
        self.made: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> type:
        full = f"{module}.{name}"
        if full in self.plain:
            return self.plain[full]
        if full not in self.allowed:
            raise _refusal(self.path, shown(full))
        # A class of this reading alone: nothing that a pickle sets on it outlives the reading.
        return self.made.setdefault(full, type("Call", (Call,), {"name": full}))


def load_inert(
    file: IO[bytes],
    path: str | Path,
    allowed: Collection[str],
    *,
    plain: Mapping[str, type] = MappingProxyType({}),
    encoding: str = "ASCII",
) -> Any:
    """The pickle that a file is, with :class:`Call` in place of every call.

    Args:
        file: seekable. path: its name, for errors.
        allowed: full names (``module.name``, as the file writes them) that may occur.
        plain: full names that may occur too, and the empty container that each is built as.
        encoding: of the text in Python 2's pickles, "bytes" to leave it as it is.

    Raises:
        UserError: another name occurs, or the file is no pickle, or more than one.
    """
    try:
        _scan(file, path)
        return _Inert(file, path, allowed, plain, encoding).load()
    except UserError:
        raise
    # Foreign bytes make the unpickler raise errors of any kind.
    except Exception as error:
        raise UserError(f"{path}: not a readable pickle ({reason(error)})") from None


def _scan(file: IO[bytes], path: str | Path) -> None:
    """Refuse what pickle itself would take: a place in its memo far beyond those in use, for which
    it would make room, and bytes after the end."""
    start, used = file.tell(), 0
    for operator, argument, _ in pickletools.genops(file):
        if operator.name in _PUTS:
            used += 1
            if argument is not None and argument > used:
                raise _refusal(path, f"place {argument} of the memo, {used} in use")
    if file.read(1):
        raise _refusal(path, "more follows the pickle")
    file.seek(start)


def _refusal(path: str | Path, what: str) -> UserError:
    return UserError(
        f"{path}: {what}: a file of this kind does not hold it; refused, and nothing in the file "
        "was run"
    )
