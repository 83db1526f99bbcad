"""Schedules, parameterizations and drawn times."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stack.diffusion.ancestral import ancestral
from stack.diffusion.guidance import guide
from stack.diffusion.parameterization import PARAMETERIZATIONS, loss_weight, predict_x0
from stack.diffusion.schedule import (
    DiscreteSchedule,
    add_noise,
    per_sample,
    schedule_from_config,
)
from stack.diffusion.solvers import ddim
from stack.diffusion.timesteps import UniformTimes
from stack.train.build_cost import Imagined
from stack.train.build_subject import sd_subject
from stack.util.errors import UserError
from tests.train.small import recipe_of, two_levels

SCHEDULE = DiscreteSchedule.scaled_linear()
SD = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
NAMES = list(PARAMETERIZATIONS)


def test_defaults_are_stable_diffusions() -> None:
    stock = DDPMScheduler(**SD)
    torch.testing.assert_close(
        SCHEDULE.alphas_cumprod.float(), stock.alphas_cumprod, rtol=1e-5, atol=0
    )
    assert SCHEDULE.alpha(torch.tensor(999)).item() == pytest.approx(0.068, abs=5e-4)
    assert torch.equal(schedule_from_config(SD, "here").alphas_cumprod, SCHEDULE.alphas_cumprod)


def test_unknown_beta_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="here: beta_schedule: 'odd' is not one of scaled_linear"):
        schedule_from_config(SD | {"beta_schedule": "odd"}, "here")


TRAINED = torch.linspace(1e-4, 0.02, 1000).tolist()
ROWS = {
    # fields of the file, the kind of diffusers' scheduler
    "trained betas": ({"trained_betas": TRAINED}, DDPMScheduler),
    "trained betas, of a DDIM file": ({"trained_betas": TRAINED}, DDIMScheduler),
    "no trained betas": ({"trained_betas": None}, PNDMScheduler),
    "zero SNR": (
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        DDIMScheduler,
    ),
    "zero SNR of trained betas": (
        {
            "trained_betas": TRAINED,
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
        },
        DDPMScheduler,
    ),
    "no zero SNR": ({"rescale_betas_zero_snr": False}, DDIMScheduler),
}


@pytest.mark.parametrize("row", ROWS)
def test_fields_of_a_file_are_read_as_by_diffusers(row: str) -> None:
    fields, kind = ROWS[row]
    stock = kind(**SD | fields)
    found = schedule_from_config(dict(stock.config), "here").alphas_cumprod
    torch.testing.assert_close(found.float(), stock.alphas_cumprod, rtol=1e-3, atol=0)
    assert (found[-1] == 0) == ("prediction_type" in fields)
    changed = (found / SCHEDULE.alphas_cumprod - 1).abs().max() > 0.01
    assert changed == (not row.startswith("no "))


@pytest.mark.parametrize("predicts", ["epsilon", "sample", None])
@pytest.mark.parametrize(
    "fields", [{"rescale_betas_zero_snr": True}, {"trained_betas": [*TRAINED[:-1], 1.0]}]
)
def test_alpha_of_zero_is_for_networks_that_predict_v(fields: dict, predicts: str | None) -> None:
    told = {"prediction_type": predicts} if predicts else {}
    with pytest.raises(UserError, match=r"here: prediction_type: '\w+' does not go with .* 0 "):
        schedule_from_config(SD | fields | told, "here")


def test_betas_are_one_for_each_time() -> None:
    with pytest.raises(UserError, match="trained_betas: 3 of num_train_timesteps = 1000"):
        schedule_from_config(SD | {"trained_betas": [0.1] * 3}, "here")


def test_everything_is_finite_where_alpha_is_zero() -> None:
    """v: F = eps - 0, so x0 = -F there, and errors in x0 are those in F."""
    schedule = SCHEDULE.zero_snr()
    t = torch.tensor([999])
    x0, eps = torch.randn(2, 1, 4, 2, 2)
    assert torch.equal(add_noise(x0, eps, t, schedule), eps)
    assert torch.equal(predict_x0(-x0, eps, t, schedule, "v_prediction"), x0)
    assert loss_weight(t, schedule, "v_prediction") == 1
    edges = UniformTimes(0, 999).log_snr_edges(schedule, 10)
    assert edges.isfinite().all()
    assert torch.bucketize(schedule.log_snr(t), edges, right=True) == 0
    times = [999, 500, 20]
    assert ddim(lambda x, t: 0.5 * x, eps, schedule, times).isfinite().all()
    drawn = ancestral(lambda x, t: 0.5 * x, eps, schedule, times, lambda step: x0)
    assert drawn.isfinite().all()


class Moved(TorchDispatchMode):
    """Counts operations between the CPU and the device that stands for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **kwargs or {})
        tensors = [value for value in (*args, found) if isinstance(value, Tensor)]
        self.count += len({value.device.type for value in tensors}) > 1
        return found


def test_the_table_is_copied_to_a_device_once() -> None:
    """A copy from pageable memory holds up the host until the GPU has caught up."""
    schedule = DiscreteSchedule.scaled_linear()
    t = torch.empty(3, dtype=torch.int64, device="meta")
    with Moved() as moved:
        for _ in range(2):
            for level in (schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)):
                assert level.device.type == "meta"
    assert moved.count == 1
    assert schedule.alpha(torch.tensor(999)).item() == pytest.approx(0.068, abs=5e-4)


def test_losses_of_an_iteration_copy_nothing_to_the_device() -> None:
    """From the second one on: of student and critics, forward and backward, noise included."""
    imagined = Imagined(recipe_of(size=32), sd_subject(two_levels(8)), 2)
    imagined.joint()
    with Moved() as moved:
        imagined.joint()
    assert moved.count == 0


def test_variance_is_preserved_and_log_snr_falls() -> None:
    t = torch.arange(1000)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000))
    torch.testing.assert_close(SCHEDULE.log_snr(t), 2 * (alpha.log() - sigma.log()))
    assert (SCHEDULE.log_snr(t).diff() < 0).all()
    assert alpha.dtype == sigma.dtype == SCHEDULE.log_snr(t).dtype == torch.float32


@pytest.mark.parametrize("of", ["alpha", "sigma", "log_snr"])
def test_float_times_are_refused(of: str) -> None:
    with pytest.raises(TypeError, match="times are integers"):
        getattr(SCHEDULE, of)(torch.tensor([500.5]))


def diffused(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x0, eps = torch.randn(2, len(t), 4, 2, 2)
    return x0, eps, add_noise(x0, eps, t, SCHEDULE)


def prediction(name: str, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = (per_sample(s, x0) for s in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
    return {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[name]


@pytest.mark.parametrize("name", NAMES)
def test_x0_is_read_back(name: str) -> None:
    t = torch.tensor([0, 20, 500, 980, 999])
    x0, eps, x_t = diffused(t)
    read = predict_x0(prediction(name, x0, eps, t), x_t, t, SCHEDULE, name)
    torch.testing.assert_close(read, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_loss_weight_turns_an_error_in_x0_into_one_in_the_target(name: str) -> None:
    """|F - F_true|^2 = w |x0 - x0_true|^2, sample by sample."""
    t = torch.tensor([1, 20, 300, 700, 999])
    x0, eps, x_t = diffused(t)
    true = prediction(name, x0, eps, t)
    guess = true + 0.1 * torch.randn_like(true)
    in_target = (guess - true).square().flatten(1).mean(1)
    in_x0 = (predict_x0(guess, x_t, t, SCHEDULE, name) - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(in_target, loss_weight(t, SCHEDULE, name) * in_x0, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_x0_is_float32_from_bf16_predictions(name: str) -> None:
    t = torch.tensor([999])
    half = torch.ones(1, 4, 2, 2, dtype=torch.bfloat16)
    assert predict_x0(half, half, t, SCHEDULE, name).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_guidance_in_x0_is_guidance_in_the_prediction(name: str) -> None:
    t = torch.tensor([20, 500, 999])
    x0, eps, x_t = diffused(t)
    cond, uncond = prediction(name, x0, eps, t), prediction(name, eps, x0, t)
    ahead = predict_x0(guide(cond, uncond, 1.75), x_t, t, SCHEDULE, name)
    after = guide(*(predict_x0(f, x_t, t, SCHEDULE, name) for f in (cond, uncond)), 1.75)
    torch.testing.assert_close(ahead, after, rtol=1e-3, atol=1e-3)


def test_times_are_uniform_over_both_ends() -> None:
    times = UniformTimes(20, 24)
    t = times.draw(seed=0, iteration=0, role="t", positions=torch.arange(50000))
    counts = torch.bincount(t - 20, minlength=5)
    assert len(counts) == 5
    assert (counts / 10000 - 1).abs().max() < 0.05
    assert t.dtype == torch.int64


def test_edges_part_the_times_exactly() -> None:
    times = UniformTimes(0, 99)
    edges = times.log_snr_edges(SCHEDULE, 10)
    level = torch.bucketize(SCHEDULE.log_snr(torch.arange(100)), edges, right=True)
    assert torch.bincount(level).tolist() == [10] * 10
