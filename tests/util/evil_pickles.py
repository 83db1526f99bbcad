"""Pickles that would run something, or are none: bytes to be refused by whatever reads pickles."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RECONSTRUCT = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
"""A name that a reader may allow, put on the stack."""


class Run:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def touch(sentinel: Path) -> Run:
    return Run(os.system, f"touch {sentinel}")


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def stacked(module: bytes, name: bytes, argument: bytes) -> bytes:
    """A call of a global whose names are taken from the stack."""
    return b"\x80\x04" + module + name + b"\x93" + argument + b"\x85R."


def dumped(made: Callable[[Path], Any]) -> Callable[[Path], bytes]:
    return lambda sentinel: pickle.dumps({"ema": made(sentinel)})


def command(sentinel: Path) -> bytes:
    return text(f"touch {sentinel}")


def by_memo(sentinel: Path) -> bytes:
    """The names come out of the memo, and "os" is put there over an innocent one."""
    names = b"\x80\x04" + text("collections") + b"q\x000" + text("os") + b"q\x000"
    names += text("system") + b"q\x010"
    return names + b"h\x00h\x01\x93" + command(sentinel) + b"\x85R."


EVIL: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (dumped(touch), r"posix\.system"),
    "builtins.eval": (
        dumped(lambda s: Run(eval, f"open({str(s)!r}, 'w')")),
        r"builtins\.eval",
    ),
    "builtins.exec": (dumped(lambda s: Run(exec, f"open({str(s)!r}, 'w')")), r"builtins\.exec"),
    "an attribute of a class": (
        dumped(lambda s: Run(getattr, dict, "fromkeys")),
        r"builtins\.getattr",
    ),
    "an import": (dumped(lambda s: Run(builtins.__import__, "os")), r"builtins\.__import__"),
    "a dotted name": (
        lambda s: stacked(text("collections"), text("OrderedDict.fromkeys"), command(s)),
        r"collections\.OrderedDict\.fromkeys",
    ),
    "a module within an allowed one": (
        lambda s: stacked(text("torch.storage"), text("os.system"), command(s)),
        r"torch\.storage\.os\.system",
    ),
    "an allowed name cut elsewhere": (
        lambda s: stacked(text("torch"), text("load"), command(s)),
        r"torch\.load",
    ),
    "Python 2's names": (
        lambda s: b"\x80\x02c__builtin__\neval\n" + command(s) + b"\x85R.",
        r"__builtin__\.eval",
    ),
    "protocol 0": (lambda s: f"cos\nsystem\n(S'touch {s}'\ntR.".encode(), r"os\.system"),
    "an instance": (lambda s: f"(S'touch {s}'\nios\nsystem\n.".encode(), r"os\.system"),
    "the memo": (by_memo, r"os\.system"),
    "numpy's own loader": (dumped(lambda s: Run(np.load, str(s))), r"numpy\S*\.load"),
    "escapes of a terminal": (
        lambda s: stacked(text("os\x1b[2J"), text("system"), command(s)),
        r"os\\x1b\[2J\.system",
    ),
    "a long name": (lambda s: stacked(text("o" * 10**6), text("s"), command(s)), r"o+\.\.\.o+\.s"),
}
"""Bytes of a file, and the name that the refusal gives."""

TAKEN_BY_PICKLE: dict[str, tuple[bytes, str]] = {
    "a second pickle": (pickle.dumps({}) + pickle.dumps({}), "more follows the pickle"),
    "a byte": (pickle.dumps({}) + b"\n", "more follows the pickle"),
    "a far place of the memo": (b"\x80\x04Nr\xff\xff\xff\x7f.", "place 2147483647 of the memo, 1"),
    "such a place in text": (b"Np123456789\n.", "place 123456789 of the memo, 1"),
}
"""Harmless but for what pickle does about it: bytes of a file, and the refusal."""

UNREADABLE = {
    "no pickle": b"PK\x03\x04 nothing of the kind",
    "empty": b"",
    "cut": pickle.dumps({"ema": [1] * 100})[:50],
    "a persistent id": b"\x80\x04" + text("os.system") + b"Q.",
    "an extension's code": b"\x80\x04\x82\x01.",
    "an attribute set on a stand-in": (
        b"\x80\x04" + RECONSTRUCT + b"N}" + text("__setstate__") + RECONSTRUCT + b"s\x86b."
    ),
    "a builtin type's attribute": (
        b"\x80\x04ccollections\nOrderedDict\nN}" + text("get") + RECONSTRUCT + b"s\x86b."
    ),
}
"""What is no pickle, or one that no file of an honest writer is."""
