"""The recipe for a GPU of 24 GB, at its full size and in no more memory than such a GPU has."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.nets.published import UNETS
from stack.train.budget import GPUS
from stack.train.build_plan import Planner
from stack.train.build_subject import sd_subject
from stack.verbs.bench_step import Steps
from tests.cuda.gpu import needs_gpu
from tests.forked import ROOT

pytestmark = [needs_gpu, pytest.mark.slow]

CARD = GPUS["rtx4090"]
SUBJECT = sd_subject(UNETS["sd15"])
NOT_HERE = ("text and autoencoder", "sample grids", "libraries")
"""Not of the allocator's counting, or not of a step."""
WEIGHTS = 859_520_964


@pytest.fixture
def recipe() -> DistillRecipe:
    found = load_recipe(ROOT / "recipes/coyo_js_24gb.yaml")
    assert isinstance(found, DistillRecipe)
    return found


@pytest.fixture
def planned(recipe: DistillRecipe) -> dict[str, int]:
    """Bytes by part."""
    plan = Planner(SUBJECT, CARD, gpus=1, node=8, share=0.4).plan(recipe)
    assert plan.fits
    return plan.bytes_per_gpu


@pytest.fixture
def small_card(planned: dict[str, int]) -> Iterator[None]:
    """The allocator gets what the card has, less what a run holds beside it: the CUDA context and
    libraries, and parts that take no part in a step."""
    total = torch.cuda.get_device_properties(0).total_memory
    left = CARD.memory - sum(planned.get(part, 0) for part in NOT_HERE)
    if total < left:
        pytest.skip(f"the GPU has {total / 2**30:.1f} GiB, fewer than {left / 2**30:.1f}")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(left / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_its_iterations_fit(
    recipe: DistillRecipe, planned: dict[str, int], small_card: None
) -> None:
    """The moments are in pages that CUDA moves between GPU and host: max_memory_allocated does not
    count them, nor does the limit hold them, so they are counted here on their own. On a card of
    24 GB they are in the host's memory while the rest needs its place, as the plan has them."""
    others = torch.cuda.memory_allocated()
    steps = Steps(recipe, SUBJECT, recipe.batch_size)
    assert len(steps.batches) == recipe.batch_size // 4
    steps.step("joint")  # Makes the moments.
    paged = [
        value.nbytes
        for weights in steps.task.weights[:2]
        for parameter in weights.module.parameters()
        for value in weights.optimizer.moments(parameter).values()
        if getattr(value, "is_paged", False)
    ]
    assert sum(paged) == pytest.approx(2 * 2 * WEIGHTS, rel=0.05)
    peak = steps.peak_bytes("joint") - others
    expected = sum(size for part, size in planned.items() if part not in NOT_HERE)
    assert peak == pytest.approx(expected, rel=0.1)
