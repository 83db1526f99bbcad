"""Where the doctor's ranks learn their places."""

from __future__ import annotations

import pytest
from torch import distributed as dist

from stack.verbs.doctor_board import Board


@pytest.mark.parametrize(
    ("told", "share"),
    [
        ({}, (0, 1)),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, (1, 4)),
        ({"LOCAL_RANK": "1"}, (0, 1)),  # A launcher that does not tell: all do all.
        ({"SLURM_NTASKS_PER_NODE": "8"}, (0, 1)),  # An interactive job's shell, not a rank.
    ],
)
def test_a_share_is_that_of_a_launcher_who_tells_all(
    told: dict[str, str], share: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert Board(dist.HashStore(), 0, 1).share == share
