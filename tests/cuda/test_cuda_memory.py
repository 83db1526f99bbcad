"""Memory of a GPU as planned and as its allocator counts it."""

from __future__ import annotations

import gc

import pytest
import torch

from stack.nets.published import UNETS
from stack.train.budget import GPUS
from stack.train.build_plan import Planner
from stack.train.build_subject import sd_subject
from stack.verbs.bench_step import Steps
from tests.cuda.gpu import needs_gpu
from tests.train.small import recipe_of

pytestmark = [needs_gpu, pytest.mark.slow]

CHANNELS = {"block_out_channels": (160, 320, 640, 640), "attention_head_dim": 4}
SUBJECT = sd_subject(UNETS["sd15"] | CHANNELS)
"""A quarter of Stable Diffusion's weights, all of its latents, heads of its sizes."""
SAMPLES = 8
NOT_HERE = ("text and autoencoder", "sample grids", "libraries")
"""Not of the allocator's counting, or not of a step."""


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("attention", ["sdpa", "math"])
def test_the_peak_is_within_a_tenth(checkpointing: str, attention: str) -> None:
    recipe = recipe_of(
        "precision=bf16",
        "student_every=1",
        f"data.global_batch={SAMPLES}",
        f"compute={{checkpointing: {checkpointing}, attention: {attention}}}",
        size=64,
    )
    plan = Planner(SUBJECT, GPUS["h100"], gpus=1, node=8, share=0.4).plan(recipe)
    expected = sum(size for part, size in plan.bytes_per_gpu.items() if part not in NOT_HERE)
    gc.collect()
    torch.cuda.empty_cache()
    others = torch.cuda.memory_allocated()
    steps = Steps(recipe, SUBJECT, SAMPLES)
    steps.step("joint")  # Makes the moments.
    assert steps.peak_bytes("joint") - others == pytest.approx(expected, rel=0.1)
