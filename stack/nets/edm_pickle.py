"""Reading a pickle without running anything that it names.

A pickle is a program: it names globals and has them called. Here each name must be on a list, and
what it yields is no function or class of that name but an inert :class:`Call` that keeps the
arguments. Whoever knows the file's layout reads the calls afterwards.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

from stack.util.errors import UserError
from stack.util.retry import reason

PLAIN: Mapping[str, type] = {
    "builtins.set": set,
    "collections.OrderedDict": dict,
    "dnnlib.util.EasyDict": dict,
}
"""Containers that are built as such."""


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
        self, file: IO[bytes], path: str | Path, allowed: Collection[str], encoding: str
    ) -> None:
        super().__init__(file, encoding=encoding)
        self.path, self.allowed = path, allowed
        self.made: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> type:
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise UserError(
                f"{self.path}: {full}: a file of this kind does not hold it; refused, and nothing "
                "in the file was run"
            )
        if full in PLAIN:
            return PLAIN[full]
        # A class of this reading alone: nothing that a pickle sets on it outlives the reading.
        return self.made.setdefault(full, type("Call", (Call,), {"name": full}))


def load_inert(
    file: IO[bytes], path: str | Path, allowed: Collection[str], *, encoding: str = "ASCII"
) -> Any:
    """The first pickle in a file, with :class:`Call` in place of every call.

    Args:
        path: the file's name, for errors.
        allowed: full names (``module.name``, as the file writes them) that may occur.
        encoding: of the text in Python 2's pickles, "bytes" to leave it as it is.

    Raises:
        UserError: another name occurs, or the file is no pickle.
    """
    try:
        return _Inert(file, path, allowed, encoding).load()
    except UserError:
        raise
    # Foreign bytes make the unpickler raise errors of any kind.
    except Exception as error:
        raise UserError(f"{path}: not a readable pickle ({reason(error)})") from None
