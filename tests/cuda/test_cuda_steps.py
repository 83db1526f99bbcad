"""Iterations on a GPU: float32 as on a CPU; bfloat16, compiled, recomputed, 8-bit Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda.gpu import CPU, CUDA, needs_gpu
from tests.train.small import batch_of, config_of, recipe_of, task_of

pytestmark = needs_gpu


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions run in TF32 unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def figures(device: torch.device, *overrides: str) -> dict[str, Any]:
    """Losses and gradient norms of an iteration of student and critics."""
    task = task_of(recipe_of("student_every=1", *overrides), config_of(), device)
    told, stepped = task.iteration(0, [batch_of(config_of(), device)])
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


WIDE = config_of(16, layers_per_block=1, block_out_channels=(128, 128, 128, 128))
"""bitsandbytes keeps the moments of weights below 4096 elements in float32, and pages those of
100,000 and more."""


def trained(device: torch.device, kind: str, lr: float) -> tuple[float, list[Tensor]]:
    """The fake score's loss after four iterations, and the student's moments."""
    each = [f"optim.{name}.{field}" for name in NETWORKS for field in (f"lr={lr}", "warmup=0")]
    kinds = [f"optim.{name}.kind={kind}" for name in NETWORKS]
    task = task_of(recipe_of("student_every=1", *each, *kinds, size=16), WIDE, device)
    batch = batch_of(WIDE, device)
    for iteration in range(5):
        told, stepped = task.iteration(iteration, [batch])
        assert stepped
    weights = task.weights[0]
    moments = map(weights.optimizer.moments, weights.module.parameters())
    return told["loss/fake"].item(), [value for row in moments for value in row.values()]


NETWORKS = ("student", "fake")


@pytest.mark.parametrize("kind", ["adamw8bit", "paged_adamw8bit"])
def test_eight_bit_adam_trains_as_torchs(kind: str) -> None:
    """Far from where the loss would be without a step."""
    (still, _), (exact, _) = (trained(CUDA, "adamw", lr) for lr in (1e-12, 1e-3))
    found, moments = trained(CUDA, kind, 1e-3)
    assert abs(exact - still) > 0.1 * still
    assert abs(found - exact) < 0.2 * abs(exact - still)
    assert sum(value.dtype == torch.uint8 for value in moments) > 50
    paged = [value for value in moments if getattr(value, "is_paged", False)]
    assert bool(paged) == (kind == "paged_adamw8bit")
