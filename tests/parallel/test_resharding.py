"""A checkpoint of some ranks is loaded by others: every bit of weights, moments and average."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import forked
from tests.parallel.rows import rows

pytestmark = pytest.mark.slow

RELAYS = {
    "tensors": [("fsdp", 3), ("ddp", 2), ("hsdp", 4), ("none", 1), ("fsdp", 2)],
    "zero1": [("zero1", 2), ("zero1", 4), ("zero1", 1)],
    "zero2": [("zero2", 1), ("zero2", 2)],
    "zero3": [("zero3", 2), ("zero3", 1), ("zero3", 2)],
    "tensors of more": [("fsdp", 4), ("fsdp", 8), ("hsdp", 4), ("fsdp", 2), ("fsdp", 8)],
    "zero2 of more": [("zero2", 4), ("zero2", 2)],
    "zero3 of more": [("zero3", 4), ("zero3", 2), ("zero3", 4)],
}
RARE = {"zero1", "tensors of more", "zero2 of more", "zero3 of more"}
"""test_zero.py has ZeRO's files loaded by four ranks, in every stage."""


@pytest.mark.parametrize("relay", rows(RELAYS, RARE))
def test_handed_on_bit_for_bit(tmp_path: Path, relay: str) -> None:
    source, first = tmp_path / "none", None
    for number, (backend, ranks) in enumerate(RELAYS[relay]):
        target, digest = tmp_path / str(number), tmp_path / f"{number}.pt"
        name, size = ("fsdp", "2") if backend == "hsdp" else (backend, "0")
        arguments = [name, size, str(source), str(target), str(digest)]
        done = forked.run("tests.parallel.relay", *arguments, ranks=ranks)
        assert done.returncode == 0, done.stderr
        found = torch.load(digest)
        first = first or found
        assert found.keys() == first.keys()
        for key, value in first.items():
            assert torch.equal(found[key], value), f"{key} from {source} on {ranks} ranks"
        source = target / "step-0000001"
    assert first
    assert {key.split(".")[0] for key in first} == {"weight", "moment", "average"}
    assert not torch.equal(first["weight.0.weight"], first["average.0.weight"])
    assert not list(tmp_path.rglob(".universal-*"))
