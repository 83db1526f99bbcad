"""Pickles that would run something: refused, and nothing was run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stack.nets.edm_files import import_edm
from stack.nets.edm_pickle import Call, load_inert
from stack.util.errors import UserError
from tests.nets.test_edm_files import Persistent, nvidia

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
    "escapes of a terminal": (
        lambda s: stacked(text("os\x1b[2J"), text("system"), command(s)),
        r"os\\x1b\[2J\.system",
    ),
    "a long name": (lambda s: stacked(text("o" * 10**6), text("s"), command(s)), r"o+\.\.\.o+\.s"),
}
"""Bytes of a file, and the name that the refusal gives."""


@pytest.mark.parametrize("case", EVIL)
def test_other_names_are_refused(case: str, tmp_path: Path) -> None:
    make, name = EVIL[case]
    sentinel, file = tmp_path / "ran", tmp_path / "evil.pkl"
    file.write_bytes(make(sentinel))
    with pytest.raises(UserError, match=rf"evil\.pkl: '{name}': .* refused") as refusal:
        import_edm(file, tmp_path / "out")
    assert len(str(refusal.value)) < 300 + len(str(tmp_path))
    assert list(tmp_path.iterdir()) == [file]


TAKEN_BY_PICKLE: dict[str, tuple[bytes, str]] = {
    "a second pickle": (pickle.dumps({}) + pickle.dumps({}), "more follows the pickle"),
    "a byte": (pickle.dumps({}) + b"\n", "more follows the pickle"),
    "a far place of the memo": (b"\x80\x04Nr\xff\xff\xff\x7f.", "place 2147483647 of the memo, 1"),
    "such a place in text": (b"Np123456789\n.", "place 123456789 of the memo, 1"),
}
"""Harmless but for what pickle does about it: bytes of a file, and the refusal."""


@pytest.mark.parametrize("case", TAKEN_BY_PICKLE)
def test_what_pickle_would_take_is_refused(case: str, tmp_path: Path) -> None:
    data, message = TAKEN_BY_PICKLE[case]
    file = tmp_path / "odd.pkl"
    file.write_bytes(data)
    with pytest.raises(UserError, match=rf"odd\.pkl: {message}.* refused"):
        import_edm(file, tmp_path / "out")


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


NAMES = {
    "two tensors": ({"weight": torch.zeros(1)}, {"weight": torch.ones(1)}, "called weight"),
    "a path": ({"a.weight": torch.zeros(1)}, {}, r"'a\.weight' is no name"),
    "an escape": ({"\x1b[2J": torch.zeros(1)}, {}, r"'\\x1b\[2J' is no name"),
    "a number": ({3: torch.zeros(1)}, {}, "TypeError"),
}
"""Parameters and buffers of one module, and what the refusal says."""


@pytest.mark.parametrize("case", NAMES)
def test_a_name_stands_for_one_tensor(case: str, tmp_path: Path) -> None:
    parameters, buffers, message = NAMES[case]
    state = {"_parameters": parameters, "_buffers": buffers, "_modules": {}}
    file = tmp_path / "odd.pkl"
    with nvidia():
        made = Persistent("EDMPrecond", state | {"_init_kwargs": {"img_resolution": 4}}, "")
        file.write_bytes(pickle.dumps({"ema": made}))
    with pytest.raises(UserError, match=rf"odd\.pkl: not laid out .*{message}"):
        import_edm(file, tmp_path / "out")


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
