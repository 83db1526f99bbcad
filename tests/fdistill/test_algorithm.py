"""Whole iterations: who moves, on which noise, whatever the layout of the work, and after a NaN."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stack.diffusion.timesteps import UniformTimes
from stack.fdistill.algorithm import Batch, FDistill, Noise
from stack.fdistill.divergence import DIVERGENCES
from tests.fdistill.tiny_run import (
    BATCH,
    SOURCES,
    batch_of,
    make,
    micro_batches,
    moved,
    weights_of,
)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("alternation", ["joint", "exclusive"])
def test_who_moves(alternation: str, k: int) -> None:
    algorithm = make(student_every=k, alternation=alternation)
    for iteration in range(2 * k):
        before = weights_of(algorithm)
        figures, stepped = algorithm.iteration(iteration, [batch_of()])
        students_turn = iteration in (k - 1, 2 * k - 1)
        critics_turn = alternation == "joint" or not students_turn
        expected = set(["student"] * students_turn + ["fake", "heads"] * critics_turn)
        assert stepped
        assert moved(before, weights_of(algorithm)) == expected
        assert ("loss/gap" in figures, "loss/fake" in figures) == (students_turn, critics_turn)


def test_iterations_count_from_zero_and_turns_are_as_the_paper_says() -> None:
    """k critic updates for each student update in both conventions (k - 1 when exclusive)."""
    joint, exclusive = make(student_every=5), make(student_every=5, alternation="exclusive")
    turns = [joint.turns(i) for i in range(10)]
    assert [i for i, (student, _) in enumerate(turns) if student] == [4, 9]
    assert all(critics for _, critics in turns)
    turns = [exclusive.turns(i) for i in range(10)]
    assert [i for i, (_, critics) in enumerate(turns) if not critics] == [4, 9]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_accumulation_does_not_change_the_update(divergence: str, source: str) -> None:
    updates = {}
    # Updates are differences of float32 weights, so they are known to an ulp of these.
    ulp = torch.finfo(torch.float32).eps * max(w.abs().max() for w in weights_of(make()).values())
    for parts in (1, 2, 4):
        algorithm = make(divergence, feature_source=source, guidance=1.75)
        before = weights_of(algorithm)
        figures, stepped = algorithm.iteration(0, micro_batches(parts))
        assert stepped
        after = weights_of(algorithm)
        updates[parts] = [after[name] - before[name] for name in ("student", "fake", "heads")]
        updates[parts] += [figures["h"], algorithm.ratio.normalizer.sums]
    if divergence != "reverse_kl":
        assert updates[1][3].std() > 0.05  # h varies: the statistics must span the parts
    for parts in (2, 4):
        for one, other in zip(updates[1], updates[parts], strict=True):
            largest = one.abs().max().item()
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * largest + ulp.item())


def test_all_losses_use_the_weights_from_before_the_iteration() -> None:
    """A joint iteration does to each network what an exclusive one does to it alone."""
    runs = {"joint": make(student_every=2)}
    runs["student"] = make(student_every=2, alternation="exclusive")
    runs["critics"] = make(student_every=3, alternation="exclusive")
    after = {}
    for name, algorithm in runs.items():
        algorithm.iteration(1, [batch_of()])
        after[name] = weights_of(algorithm)
    assert torch.equal(after["joint"]["student"], after["student"]["student"])
    for critic in ("fake", "heads"):
        assert torch.equal(after["joint"][critic], after["critics"][critic])
        assert not torch.equal(after["joint"][critic], after["student"][critic])


def poison_data(algorithm: FDistill, batch: Batch) -> Batch:
    return replace(batch, x0=batch.x0 * torch.tensor(float("nan")))


def poison_one_sample(algorithm: FDistill, batch: Batch) -> Batch:
    c = batch.c.clone()
    c[2] = float("inf")
    return replace(batch, c=c)


def poison_gradient(algorithm: FDistill, batch: Batch) -> Batch:
    weights: Any = algorithm.fake_weights
    inner = weights.clip

    def clip() -> Tensor:
        weights.clip = inner
        return inner() * float("nan")

    weights.clip = clip
    return batch


@pytest.mark.parametrize("poison", [poison_data, poison_one_sample, poison_gradient])
def test_after_a_nan_nobody_steps(poison: Callable[[FDistill, Batch], Batch]) -> None:
    algorithm, clean = make(), make()
    for run in (algorithm, clean):
        run.iteration(0, [batch_of()])
    before, ratio = weights_of(algorithm), copy.deepcopy(algorithm.ratio.normalizer.state_dict())
    _, stepped = algorithm.iteration(1, [poison(algorithm, batch_of())])
    assert not stepped
    assert not moved(before, weights_of(algorithm))
    for name, value in algorithm.ratio.normalizer.state_dict().items():
        assert torch.equal(value, ratio[name])
    for run in (algorithm, clean):  # and the next iteration goes on as if nothing had been
        assert run.iteration(2, [batch_of()])[1]
    assert not moved(weights_of(clean), weights_of(algorithm))


@pytest.mark.parametrize("ranks", [3, 7, 49])
def test_one_rank_s_nan_stops_all_and_rounding_stops_none(ranks: int) -> None:
    """A mean over ranks may be a sum of shares, of which 49 make 0.99999...: not a failure."""

    def others(value: float) -> Callable[[Tensor], Tensor]:
        return lambda mine: sum([torch.full_like(mine, value)] * (ranks - 1), mine) / ranks

    for elsewhere, stepped in ((0.0, True), (1.0, False)):
        algorithm = make(alternation="exclusive", student_every=2)
        algorithm.all_reduce_mean = others(elsewhere)
        assert algorithm.iteration(0, [batch_of()])[1] is stepped


def test_noise_follows_position_not_layout() -> None:
    """Ranks that hold other samples of the batch see what a single rank would."""
    whole, part = batch_of(), micro_batches(2)[1]
    algorithm = make()
    x = [algorithm.generate(b, Noise(0, 5, b.positions)) for b in (whole, part)]
    torch.testing.assert_close(x[1], x[0][2:], rtol=1e-4, atol=1e-5)
    x_t = [
        algorithm._diffuse(x[0][i:], Noise(0, 5, b.positions), "score", algorithm.score_times)
        for i, b in ((0, whole), (2, part))
    ]
    assert torch.equal(x_t[0][0][2:], x_t[1][0])
    assert torch.equal(x_t[0][1][2:], x_t[1][1])


def test_roles_draw_distinct_noise() -> None:
    roles: list[str] = []

    class Recorder(Noise):
        def normal(self, role: str, like: Tensor) -> Tensor:
            roles.append(role)
            return super().normal(role, like)

        def times(self, role: str, times: UniformTimes) -> Tensor:
            roles.append(role)
            return super().times(role, times)

    algorithm, batch = make(), batch_of()
    noise = Recorder(0, 0, batch.positions)
    x = algorithm.generate(batch, noise)
    algorithm.student_loss(x, batch, noise)
    algorithm.critic_losses(x.detach(), batch, noise)
    assert len(roles) == len(set(roles)) == 9


def test_figures_carry_no_graph() -> None:
    figures, _ = make().iteration(0, micro_batches(2))
    assert not any(value.requires_grad for value in figures.values())
    assert {n for n, v in figures.items() if v.shape == (BATCH,)} == {
        *("gap", "log_r", "h", "t"),
        *("logit/real", "logit/fake", "t/gan"),
    }
    assert {n for n in figures if n.startswith("grad/")} == {
        "grad/student",
        "grad/fake",
        "grad/heads",
    }
