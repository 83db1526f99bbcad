"""Pickles that would run something: refused, and nothing was run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stack.nets.edm_blocks import CIFAR10
from stack.nets.edm_files import import_edm
from stack.nets.edm_pickle import Call, load_inert
from stack.util.errors import UserError
from tests.nets.test_edm_files import Persistent, network, nvidia, nvidia_pickle

CONFIG = CIFAR10.model_copy(
    update={"img_resolution": 4, "model_channels": 4, "num_blocks": 1, "channel_mult": (1,)}
)
RECONSTRUCT = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"


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


def in_the_state_of_a_module(sentinel: Path) -> bytes:
    with nvidia():
        state = {"_parameters": touch(sentinel)}
        return pickle.dumps({"ema": Persistent("EDMPrecond", state, "")})


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
    "a module's state": (in_the_state_of_a_module, r"posix\.system"),
    "numpy's own loader": (dumped(lambda s: Run(np.load, str(s))), r"numpy\S*\.load"),
}
"""Bytes of a file, and the name that the refusal gives."""


@pytest.mark.parametrize("case", EVIL)
def test_other_names_are_refused(case: str, tmp_path: Path) -> None:
    make, name = EVIL[case]
    sentinel, file = tmp_path / "ran", tmp_path / "evil.pkl"
    file.write_bytes(make(sentinel))
    with pytest.raises(UserError, match=rf"evil\.pkl: {name}: .* refused"):
        import_edm(file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [file]


BROKEN = {
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
    "no dict": pickle.dumps([1, 2]),
    "no network": pickle.dumps({"G": 1}),
    "a number": pickle.dumps({"ema": 3}),
    "a dict": pickle.dumps({"ema": {"class_name": "EDMPrecond"}}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_laid_out_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.pkl"
    file.write_bytes(BROKEN[case])
    with pytest.raises(UserError, match=r"odd\.pkl: not "):
        import_edm(file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [file]


def test_a_module_that_two_others_hold_is_refused(tmp_path: Path) -> None:
    """Two such, many deep, would be a tree of any size in a file of few bytes."""
    state: dict[str, Any] = {"_parameters": {}, "_buffers": {}}
    inner = Persistent("Linear", state | {"_modules": {}}, "")
    state |= {"_modules": {"one": inner, "two": inner}, "_init_kwargs": {"img_resolution": 4}}
    with nvidia():
        data = pickle.dumps({"ema": Persistent("EDMPrecond", state, "")})
    file = tmp_path / "odd.pkl"
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"two\. is a module that another one holds too"):
        import_edm(file, tmp_path / "out")


def legacy(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


NESTED: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "torch.save, legacy": (lambda s: legacy(touch(s)), r"GLOBAL posix\.system"),
    "torch.save, zip": (lambda s: zipped(touch(s)), r"GLOBAL posix\.system"),
    "a plain pickle": (lambda s: pickle.dumps(touch(s), 2), "refused"),
    "a call beside the storage": (
        lambda s: legacy({"a": torch.zeros(4), "b": touch(s)}),
        r"GLOBAL posix\.system",
    ),
    "a tensor": (lambda s: legacy(torch.zeros(4)), "holds a Tensor, not a storage"),
    "a number": (lambda s: legacy(3), "holds a int, not a storage"),
    "nothing": (lambda s: b"", "refused: EOFError"),
}
"""Bytes in place of a tensor's storage, and what the refusal says."""


@pytest.mark.parametrize("case", NESTED)
def test_what_a_storages_bytes_hold_is_checked_likewise(case: str, tmp_path: Path) -> None:
    make, message = NESTED[case]
    sentinel, file = tmp_path / "ran", tmp_path / "net.pkl"
    good, evil = nvidia_pickle(network(CONFIG)), make(sentinel)
    raw = next(
        argument
        for operator, argument, _ in pickletools.genops(good)
        if operator.name == "BINBYTES"
    )
    old, new = (b"B" + struct.pack("<I", len(data)) + data for data in (raw, evil))
    assert old in good
    # Frames of protocol 4 say how long they are: written anew without.
    file.write_bytes(unframed(good).replace(old, new, 1))
    with pytest.raises(UserError, match=rf"net\.pkl: model\.\S+: .*{message}"):
        import_edm(file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [file]


def unframed(data: bytes) -> bytes:
    """The same pickle without FRAME opcodes."""
    parts, start = [], 0
    for operator, _, place in pickletools.genops(data):
        if operator.name == "FRAME":
            parts.append(data[start:place])
            start = place + 9
    return b"".join([*parts, data[start:]])


def test_calls_keep_their_arguments_and_state() -> None:
    data = pickle.dumps([complex(1, 2), Path("a")])
    allowed = {"builtins.complex", "pathlib.PosixPath"}
    number, path = load_inert(io.BytesIO(data), "some.pkl", allowed)
    assert isinstance(number, Call)
    assert (number.name, number.args) == ("builtins.complex", (1.0, 2.0))
    assert (path.name, path.args) == ("pathlib.PosixPath", ("a",))


def test_a_stand_in_does_not_outlive_its_reading() -> None:
    read = [
        load_inert(io.BytesIO(pickle.dumps(complex(0, n))), "x", {"builtins.complex"})
        for n in (1, 2)
    ]
    assert type(read[0]) is not type(read[1])
