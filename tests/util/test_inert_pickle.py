"""Pickles are read without running anything: other names are refused, and calls stay inert."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from datetime import timedelta
from pathlib import Path

import pytest

from stack.util.errors import UserError
from stack.util.inert_pickle import Call, load_inert
from tests.util.evil_pickles import EVIL, TAKEN_BY_PICKLE, UNREADABLE

ALLOWED = {
    "torch_utils.persistence._reconstruct_persistent_obj",
    "torch.storage._load_from_bytes",
}
PLAIN = {"collections.OrderedDict": dict}


@pytest.mark.parametrize("case", EVIL)
def test_other_names_are_refused(case: str, tmp_path: Path) -> None:
    make, name = EVIL[case]
    data = io.BytesIO(make(tmp_path / "ran"))
    with pytest.raises(UserError, match=rf"evil\.pkl: '{name}': .* refused") as refusal:
        load_inert(data, "evil.pkl", ALLOWED, plain=PLAIN)
    assert len(str(refusal.value)) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", TAKEN_BY_PICKLE)
def test_what_pickle_would_take_is_refused(case: str) -> None:
    data, message = TAKEN_BY_PICKLE[case]
    with pytest.raises(UserError, match=rf"odd\.pkl: {message}.* refused"):
        load_inert(io.BytesIO(data), "odd.pkl", ALLOWED, plain=PLAIN)


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_no_pickle_is_refused(case: str) -> None:
    with pytest.raises(UserError, match=r"odd\.pkl: not a readable pickle"):
        load_inert(io.BytesIO(UNREADABLE[case]), "odd.pkl", ALLOWED, plain=PLAIN)


def test_containers_are_built_only_where_they_are_named() -> None:
    data = pickle.dumps([OrderedDict(a=1), OrderedDict(b=2)])
    read = load_inert(io.BytesIO(data), "x", set(), plain=PLAIN)
    assert read == [{"a": 1}, {"b": 2}]
    assert {type(value) for value in read} == {dict}
    with pytest.raises(UserError, match=r"x: 'collections\.OrderedDict': .* refused"):
        load_inert(io.BytesIO(data), "x", ALLOWED)


def test_calls_keep_their_arguments_and_state() -> None:
    data = pickle.dumps([complex(1, 2), timedelta(3)])
    allowed = {"builtins.complex", "datetime.timedelta"}
    number, time = load_inert(io.BytesIO(data), "some.pkl", allowed)
    assert isinstance(number, Call)
    assert (number.name, number.args) == ("builtins.complex", (1.0, 2.0))
    assert (time.name, time.args) == ("datetime.timedelta", (3, 0, 0))


def test_a_stand_in_does_not_outlive_its_reading() -> None:
    read = [
        load_inert(io.BytesIO(pickle.dumps(complex(0, n))), "x", {"builtins.complex"})
        for n in (1, 2)
    ]
    assert type(read[0]) is not type(read[1])
