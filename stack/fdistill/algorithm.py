"""f-distill: the two steps of the paper, beside which this file is meant to be read.

    student   grad = - E[ h(r_t) (s_teacher - s_fake)(x_t, t, c) dG(z, c)/dtheta ]   (Theorem 1)
    critics   fake score: denoising on student samples; discriminator: diffused data against
              diffused samples, whose logit is log r_t

Every random number is keyed by (seed, iteration, role, position in the global batch), every
statistic spans all ranks and micro-batches, and every loss of an iteration uses the weights
from before it. Nothing here knows how many processes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stack.diffusion.guidance import guide
from stack.diffusion.schedule import add_noise
from stack.diffusion.timesteps import UniformTimes
from stack.fdistill.calibration import critic_figures
from stack.fdistill.contracts import Denoiser, Heads, Trained
from stack.fdistill.losses import (
    approximate_r1,
    denoising_loss,
    discriminator_gan_loss,
    generator_gan_loss,
    score_gap_loss,
)
from stack.fdistill.ratio import AllReduceMean, RatioWeight, identity, log_density_ratio
from stack.util import keyed

Figures = dict[str, Tensor]
"""What an iteration tells: scalars, and (B,) tensors of this rank's samples."""


@dataclass(frozen=True)
class Batch:
    """This rank's samples of one micro-batch.

    Args:
        positions: (B,) position in the global batch. x0: (B, ...) data. c, null: (B, ...)
            condition and empty condition.
    """

    positions: Tensor
    x0: Tensor
    c: Tensor
    null: Tensor


@dataclass(frozen=True)
class Noise:
    """The random numbers of one iteration's samples, by role."""

    seed: int
    iteration: int
    positions: Tensor

    def normal(self, role: str, like: Tensor) -> Tensor:
        """Unit normal numbers of ``like``'s shape (B, ...)."""
        return keyed.normal(
            like.shape[1:],
            seed=self.seed,
            iteration=self.iteration,
            role=role,
            positions=self.positions,
        )

    def times(self, role: str, times: UniformTimes) -> Tensor:
        """(B,) int64 times."""
        return times.draw(
            seed=self.seed, iteration=self.iteration, role=role, positions=self.positions
        )


@dataclass
class FDistill:
    """One training algorithm over a student, a fake score, a teacher and discriminator heads.

    Args:
        student, fake, teacher, heads: the networks; the first three start out equal, and the
            student is called as G(z, t, c).
        student_weights, fake_weights, heads_weights: how they are trained.
        ratio: from log r to h.
        score_times: times of score difference, ratio and GAN; fake_times: of the fake score.
        global_batch: samples of an iteration over all ranks and micro-batches.
        feature_source: "teacher", "fake" or "fake_joint" (Fig. 7 b, c, a).
        all_reduce_mean: mean of a tensor over ranks.
    """

    student: Callable[[Tensor, Tensor, Tensor], Tensor]
    fake: Denoiser
    teacher: Denoiser
    heads: Heads
    student_weights: Trained
    fake_weights: Trained
    heads_weights: Trained
    ratio: RatioWeight
    score_times: UniformTimes
    fake_times: UniformTimes
    global_batch: int
    seed: int = 0
    guidance: float = 1.0
    gan_weight: float = 1e-3
    r1_gamma: float = 1.0
    r1_noise: float = 0.1
    feature_source: str = "teacher"
    alternation: str = "joint"
    student_every: int = 5
    logit_clamp: float = 10.0
    r_min: float = 0.1
    r_max: float = 20.0
    all_reduce_mean: AllReduceMean = identity

    def turns(self, iteration: int) -> tuple[bool, bool]:
        """(student, critics): who moves on this iteration, counted from 0."""
        student = (iteration + 1) % self.student_every == 0
        return student, self.alternation == "joint" or not student

    def iteration(self, iteration: int, batches: Sequence[Batch]) -> tuple[Figures, bool]:
        """One iteration over this rank's micro-batches.

        Returns: figures for the log, and whether the networks stepped. They do not, and the
        ratio's statistics stay as they were, if a loss or a gradient on any rank is not finite.
        """
        student_turn, critic_turn = self.turns(iteration)
        statistics = self.ratio.normalizer.state_dict()
        h = self._sweep(iteration, batches) if student_turn and len(batches) > 1 else None
        rows: list[Figures] = []
        for i, batch in enumerate(batches):
            noise = Noise(self.seed, iteration, batch.positions)
            with torch.set_grad_enabled(student_turn):
                x = self.generate(batch, noise)
            row: Figures = {}
            if student_turn:
                with self.fake_weights.frozen(), self.heads_weights.frozen():
                    loss, row = self.student_loss(x, batch, noise, h[i] if h else None)
                    self.student_weights.backward(loss / len(batches))
            if critic_turn:
                fake, discriminator, told = self.critic_losses(x.detach(), batch, noise)
                self.fake_weights.backward(fake / len(batches))
                self.heads_weights.backward(discriminator / len(batches))
                row |= told
            rows.append(row)
        moved = [self.student_weights] * student_turn
        moved += [self.fake_weights, self.heads_weights] * critic_turn
        figures, stepped = self._step(moved, _merge(rows))
        if not stepped:
            self.ratio.normalizer.load_state_dict(statistics)
        return figures, stepped

    def generate(self, batch: Batch, noise: Noise) -> Tensor:
        """x = G(z, c): the student called once on noise alone, at the last time T - 1."""
        schedule = self.teacher.schedule
        t = torch.full_like(batch.positions, schedule.steps - 1)
        return self.student(schedule.prior_scale * noise.normal("z", batch.x0), t, batch.c)

    # Student: Theorem 1 and the GAN loss, through frozen critics.

    def student_loss(
        self, x: Tensor, batch: Batch, noise: Noise, h: Tensor | None = None
    ) -> tuple[Tensor, Figures]:
        """Loss of student samples x (B, ...), by frozen critics, and figures; h (B,) if known."""
        x_t, t = self._diffuse(x, noise, "score", self.score_times)
        x0_fake, x0_teacher, features = self._scores(x_t, t, batch)
        logits = self.heads(features)
        log_r = self.log_ratio(logits.detach())
        h = self._weights(log_r, t, noise.iteration) if h is None else h
        gap = score_gap_loss(x, x0_fake, x0_teacher, h)
        gan = generator_gan_loss(logits)
        distance = (x0_fake - x0_teacher).abs().flatten(1).mean(1)
        told = {"loss/gap": gap, "loss/gan": gan, "gap": distance, "log_r": log_r, "h": h, "t": t}
        return (gap + self.gan_weight * gan if self.gan_weight else gap), told

    def _scores(self, x_t: Tensor, t: Tensor, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
        """x0 by fake score and guided teacher, and features, at the same (x_t, t, c)."""
        from_teacher = self.feature_source == "teacher"
        extractor, other = (self.teacher, self.fake) if from_teacher else (self.fake, self.teacher)
        with torch.set_grad_enabled(self.gan_weight > 0):
            x0, features = extractor.x0_and_features(x_t, t, batch.c)
        with torch.no_grad():
            x0_other = other(x_t, t, batch.c)
            x0_fake, x0_teacher = (x0_other, x0) if from_teacher else (x0, x0_other)
            if self.guidance != 1:
                x0_empty = self.teacher(x_t, t, batch.null)
                x0_teacher = guide(x0_teacher, x0_empty, self.guidance)
        return x0_fake, x0_teacher, features

    def log_ratio(self, logits: Tensor) -> Tensor:
        """(B,) clipped log r of logits (B, heads)."""
        return log_density_ratio(
            logits, logit_clamp=self.logit_clamp, r_min=self.r_min, r_max=self.r_max
        )

    def _weights(self, log_r: Tensor, t: Tensor, iteration: int) -> Tensor:
        return self.ratio(
            log_r,
            self.teacher.schedule.log_snr(t),
            iteration,
            global_batch=self.global_batch,
            all_reduce_mean=self.all_reduce_mean,
        )

    @torch.no_grad()
    def _sweep(self, iteration: int, batches: Sequence[Batch]) -> Sequence[Tensor]:
        """h of every micro-batch from the statistics of all, before the first backward."""
        log_r, times = [], []
        for batch in batches:
            noise = Noise(self.seed, iteration, batch.positions)
            x_t, t = self._diffuse(self.generate(batch, noise), noise, "score", self.score_times)
            log_r.append(self.log_ratio(self.heads(self._extractor.features(x_t, t, batch.c))))
            times.append(t)
        h = self._weights(torch.cat(log_r), torch.cat(times), iteration)
        return h.split([len(t) for t in times])

    # Critics: fake score and discriminator, on student samples without gradient.

    def critic_losses(
        self, x: Tensor, batch: Batch, noise: Noise
    ) -> tuple[Tensor, Tensor, Figures]:
        """Losses of the fake score and of the discriminator, and figures; x (B, ...) detached."""
        x_t, t = self._diffuse(x, noise, "fake", self.fake_times)
        fake = denoising_loss(self.fake(x_t, t, batch.c), x, self.fake.loss_weight(t))

        fake_t, t = self._diffuse(x, noise, "gan", self.score_times)
        real_t = add_noise(batch.x0, noise.normal("eps/real", x), t, self.teacher.schedule)
        diffused = [real_t, fake_t]
        if self.r1_gamma:
            diffused.append(real_t + self.r1_noise * noise.normal("r1", x))
        n = len(diffused)
        with torch.set_grad_enabled(self.feature_source == "fake_joint"):
            features = self._extractor.features(
                torch.cat(diffused), t.repeat(n), torch.cat([batch.c] * n)
            )
        real, generated, *perturbed = self.heads(features).chunk(n)
        discriminator = discriminator_gan_loss(real, generated)
        right = torch.cat((real > 0, generated < 0)).float().mean()
        told = {"loss/discriminator": discriminator, "discriminator/accuracy": right}
        told |= critic_figures(real, generated, t, batch.x0, x)
        if perturbed:
            told["loss/r1"] = approximate_r1(real, perturbed[0], self.r1_gamma)
            discriminator = discriminator + told["loss/r1"]
        return fake, discriminator, {"loss/fake": fake} | told

    # Shared by both.

    @property
    def _extractor(self) -> Denoiser:
        return self.teacher if self.feature_source == "teacher" else self.fake

    def _diffuse(
        self, x: Tensor, noise: Noise, role: str, times: UniformTimes
    ) -> tuple[Tensor, Tensor]:
        t = noise.times(f"t/{role}", times)
        return add_noise(x, noise.normal(f"eps/{role}", x), t, self.teacher.schedule), t

    def _step(self, moved: Sequence[Trained], figures: Figures) -> tuple[Figures, bool]:
        """Step all of ``moved``, or none if anything on any rank is not finite."""
        norms = {f"grad/{weights.name}": weights.clip() for weights in moved}
        losses = [value for name, value in figures.items() if name.startswith("loss/")]
        broken = 1 - torch.stack([*losses, *norms.values()]).isfinite().all().float()
        # A mean of zeros is exactly zero over any number of ranks; a mean of ones need not be one.
        stepped = bool(self.all_reduce_mean(broken) == 0)
        for weights in moved:
            weights.step() if stepped else weights.discard()
        return figures | norms, stepped


def _merge(rows: Sequence[Figures]) -> Figures:
    """Figures of several micro-batches: scalars averaged, samples joined; detached."""
    merged = {}
    for name, first in rows[0].items():
        values = [row[name].detach() for row in rows]
        merged[name] = torch.cat(values) if first.ndim else torch.stack(values).mean()
    return merged
