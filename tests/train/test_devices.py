"""Which device a rank runs on."""

from __future__ import annotations

import pytest
import torch

from stack.train.build import device_of
from stack.util.errors import UserError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine that shows so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)


@pytest.mark.parametrize("gpus", [4], indirect=True)
@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.usefixtures("gpus")
def test_a_gpu_a_rank(monkeypatch: pytest.MonkeyPatch, name: str, rank: int) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert device_of(name) == torch.device("cuda", rank)


@pytest.mark.parametrize("gpus", [1], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"device: auto: no GPU for rank 1 of .* has 1; start"):
        device_of("auto")


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_a_job_with_gpus_does_not_run_on_a_cpu_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is broken on one node of many."""
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert device_of("auto").type == "cpu"
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    with pytest.raises(UserError, match=r"device: auto: the job has GPUs on .* torch finds none"):
        device_of("auto")
    assert device_of("cpu").type == "cpu"
