"""bfloat16 autocast against float32, v-prediction, on the small UNet at its published size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stack.diffusion.parameterization import predict_x0
from stack.diffusion.schedule import DiscreteSchedule
from stack.fdistill.algorithm import Noise
from stack.train.build import layout_of
from tests.tiny import tiny_denoiser
from tests.train.small import batch_of, config_of, gradient, recipe_of, task_of

CPU, SIZE = torch.device("cpu"), 64
SAMPLES = 8
"""Roundings average out over a batch: with 2 samples the cosine is 0.9986, with 4 0.9992, with 8
0.9995. Another processor's roundings are other ones, but as many and as large: the bar of 0.999
leaves room for twice their squares."""


def regression_gradient(precision: str) -> Tensor:
    """Of the student's x0 against fixed targets, as the fake score's loss is."""
    config = config_of(SIZE)
    task = task_of(recipe_of(f"precision={precision}", size=SIZE), config, CPU)
    batch = batch_of(config, CPU)
    noise = Noise(0, 0, batch.positions)
    x0 = task.algorithm.student(noise.normal("x", batch.x0), torch.tensor([999, 300]), batch.c)
    (x0 - batch.x0).square().mean().backward()
    return gradient(student_of(task))


def distillation_gradient(precision: str, apart: float = 0.1) -> Tensor:
    """Of the student's loss, gap and GAN, with the fake score so far apart from the teacher, in
    standard deviations of each tensor."""
    config = config_of(SIZE)
    task = task_of(recipe_of(f"precision={precision}", size=SIZE), config, CPU, apart=apart)
    algorithm, batch = task.algorithm, batch_of(config, CPU, SAMPLES)
    noise = Noise(0, 0, batch.positions)
    x = algorithm.generate(batch, noise)
    with algorithm.fake_weights.frozen(), algorithm.heads_weights.frozen():
        loss, _ = algorithm.student_loss(x, batch, noise)
        loss.backward()
    return gradient(student_of(task))


def student_of(task) -> nn.Module:
    return task.weights[0].module


@pytest.mark.slow
def test_the_gradient_of_a_regression_is_within_two_percent() -> None:
    full, half = map(regression_gradient, ("fp32", "bf16"))
    assert not torch.equal(full, half)
    assert (half - full).norm() <= 0.02 * full.norm()


@pytest.mark.slow
def test_the_gradient_of_the_distillation_points_the_same_way() -> None:
    full, half = map(distillation_gradient, ("fp32", "bf16"))
    assert not torch.equal(full, half)
    assert F.cosine_similarity(full, half, dim=0) >= 0.999


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("bf16", True)])
def test_convolutions_in_float32_are_not_in_tf32(
    precision: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN's are, unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not allowed)
    layout_of(recipe_of(f"precision={precision}"))
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_x0_at_the_last_time_is_read_in_float32() -> None:
    """From a prediction of bfloat16 weights and autocast; the reading itself is exact to float32,
    where bfloat16's alpha and sigma alone would be off by a part in 500."""
    denoiser = tiny_denoiser("v_prediction", bf16=True).to(torch.bfloat16)
    seen: list[Tensor] = []
    denoiser.unet.conv_out.register_forward_hook(lambda *call: seen.append(call[2]))
    torch.manual_seed(0)
    x_t, c = torch.randn(3, 4, 4, 4), torch.randn(3, 77, 8)
    t = torch.full((3,), 999)
    with torch.no_grad():
        x0 = denoiser(x_t, t, c)
    assert seen[0].dtype == torch.bfloat16
    schedule = DiscreteSchedule.scaled_linear()
    exact = predict_x0(seen[0].double(), x_t.double(), t, schedule, "v_prediction")
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0.double(), exact.double(), rtol=1e-6, atol=1e-6)
