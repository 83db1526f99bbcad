"""f-distill on tiny networks that differ, and ways to watch it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stack.diffusion.timesteps import UniformTimes
from stack.fdistill.algorithm import Batch, FDistill, Noise
from stack.fdistill.divergence import DIVERGENCES
from stack.fdistill.ratio import RatioNormalizer, RatioWeight
from stack.nets.heads import MultiHead
from tests.tiny import WIDTH, PlainWeights, flat, tiny_denoiser

BATCH = 4
SOURCES = ["teacher", "fake", "fake_joint"]


class PooledHead(nn.Sequential):
    """A linear function of the mean feature, whose logits differ from sample to sample."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))
        with torch.no_grad():
            self[-1].weight.mul_(8)


def make(divergence: str = "jensen_shannon", **options: Any) -> FDistill:
    """Tiny networks that differ; joint alternation with k = 1 unless told otherwise."""
    teacher = tiny_denoiser(seed=0).requires_grad_(False)
    student, fake = tiny_denoiser(seed=1), tiny_denoiser(seed=2)
    torch.manual_seed(3)
    heads = MultiHead([PooledHead(channels) for channels in teacher.feature_channels])
    times = UniformTimes(20, 980)
    normalizer = RatioNormalizer(times.log_snr_edges(teacher.schedule, 2), prior=1.0)
    weights = [
        PlainWeights(name, module)
        for name, module in (("student", student), ("fake", fake), ("heads", heads))
    ]
    settings = {"global_batch": BATCH, "student_every": 1, "gan_weight": 0.1} | options
    return FDistill(
        student,
        fake,
        teacher,
        heads,
        *weights,
        ratio=RatioWeight(DIVERGENCES[divergence], normalizer),
        score_times=times,
        fake_times=UniformTimes(0, 999),
        **settings,
    )


def batch_of(n: int = BATCH) -> Batch:
    torch.manual_seed(4)
    null = torch.randn(1, 3, WIDTH).expand(n, -1, -1)
    return Batch(torch.arange(n), torch.randn(n, 4, 4, 4), torch.randn(n, 3, WIDTH), null)


def micro_batches(count: int) -> list[Batch]:
    whole = batch_of()
    parts = [v.chunk(count) for v in (whole.positions, whole.x0, whole.c, whole.null)]
    return [Batch(*row) for row in zip(*parts, strict=True)]


def weights_of(algorithm: FDistill) -> dict[str, Tensor]:
    names = ("student", "fake", "heads", "teacher")
    return {name: flat(getattr(algorithm, name)) for name in names}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def student_loss_of(algorithm: FDistill, batch: Batch | None = None) -> tuple[Tensor, dict]:
    batch = batch or batch_of()
    noise = Noise(0, 0, batch.positions)
    return algorithm.student_loss(algorithm.generate(batch, noise), batch, noise)


def critic_losses_of(algorithm: FDistill) -> tuple[Tensor, Tensor, dict]:
    batch = batch_of()
    noise = Noise(0, 0, batch.positions)
    return algorithm.critic_losses(algorithm.generate(batch, noise).detach(), batch, noise)


class Spy:
    """Records the calls of a method and passes them on."""

    def __init__(self, owner: Any, method: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.results: list[Any] = []
        inner = getattr(owner, method)

        def called(*args: Any) -> Any:
            self.calls.append(args)
            self.results.append(inner(*args))
            return self.results[-1]

        setattr(owner, method, called)
