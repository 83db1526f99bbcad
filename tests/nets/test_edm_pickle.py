"""Pickles that would run something: refused, and nothing was run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from stack.nets.edm_files import import_edm
from stack.util.errors import UserError
from tests.nets.test_edm_files import Persistent, nvidia
from tests.util.evil_pickles import EVIL, UNREADABLE, touch


def in_the_state_of_a_module(sentinel: Path) -> bytes:
    with nvidia():
        state = {"_parameters": touch(sentinel)}
        return pickle.dumps({"ema": Persistent("EDMPrecond", state, "")})


NVIDIAS = EVIL | {"a module's state": (in_the_state_of_a_module, r"posix\.system")}
"""Bytes of a file, and the name that the refusal gives."""


@pytest.mark.parametrize("case", NVIDIAS)
def test_other_names_are_refused(case: str, tmp_path: Path) -> None:
    make, name = NVIDIAS[case]
    sentinel, file = tmp_path / "ran", tmp_path / "evil.pkl"
    file.write_bytes(make(sentinel))
    with pytest.raises(UserError, match=rf"evil\.pkl: '{name}': .* refused") as refusal:
        import_edm(file, tmp_path / "out")
    assert len(str(refusal.value)) < 300 + len(str(tmp_path))
    assert list(tmp_path.iterdir()) == [file]


BROKEN = UNREADABLE | {
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
