"""Iterations on a GPU: float32 as on a CPU; bfloat16, compiled, recomputed, 8-bit Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda.gpu import CPU, CUDA, needs_gpu
from tests.train.small import batch_of, config_of, recipe_of, task_of

pytestmark = needs_gpu


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions run in TF32 unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def figures(device: torch.device, *overrides: str, iterations: int = 1) -> dict[str, Any]:
    """Losses and gradient norms of the last of some iterations of student and critics."""
    task = task_of(recipe_of("student_every=1", *overrides), config_of(), device)
    batch = batch_of(config_of(), device)
    for iteration in range(iterations):
        told, stepped = task.iteration(iteration, [batch])
        assert stepped
    return {
        name: value.item() for name, value in told.items() if name.startswith(("loss/", "grad/"))
    }


def test_float32_is_that_of_a_cpu() -> None:
    assert figures(CUDA) == pytest.approx(figures(CPU), rel=2e-3, abs=1e-6)


WAYS = {
    "bf16": ["precision=bf16"],
    "recomputed in part": ["precision=bf16", "compute.checkpointing=selective"],
    "recomputed": ["precision=bf16", "compute.checkpointing=full"],
}


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_stays_near(way: str) -> None:
    found, exact = figures(CUDA, *WAYS[way]), figures(CUDA)
    for name in ("loss/fake", "loss/discriminator", "loss/gan"):
        assert found[name] == pytest.approx(exact[name], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_compiled_blocks_compute_the_same(checkpointing: str) -> None:
    on = ["compute.compile=true", f"compute.checkpointing={checkpointing}"]
    assert figures(CUDA, *on) == pytest.approx(figures(CUDA), rel=5e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["adamw8bit", "paged_adamw8bit"])
def test_eight_bit_adam_trains_as_torchs(kind: str) -> None:
    """Five iterations, after which losses have moved."""
    optim = [f"optim.{name}.lr=1e-3" for name in ("student", "fake")]
    optim += [f"optim.{name}.warmup=0" for name in ("student", "fake")]
    kinds = [f"optim.{name}.kind={kind}" for name in ("student", "fake")]
    first = figures(CUDA, *optim)
    expected = figures(CUDA, *optim, iterations=5)
    found = figures(CUDA, *optim, *kinds, iterations=5)
    assert abs(expected["loss/fake"] - first["loss/fake"]) > 0.02 * first["loss/fake"]
    assert found["loss/fake"] == pytest.approx(expected["loss/fake"], rel=0.05)
