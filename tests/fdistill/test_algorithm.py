"""The two steps on tiny networks: who moves, what is called, what is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stack.diffusion.schedule import add_noise
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
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * largest)


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


def student_loss_of(algorithm: FDistill, batch: Batch | None = None) -> tuple[Tensor, dict]:
    batch = batch or batch_of()
    noise = Noise(0, 0, batch.positions)
    return algorithm.student_loss(algorithm.generate(batch, noise), batch, noise)


def critic_losses_of(algorithm: FDistill) -> tuple[Tensor, Tensor, dict]:
    batch = batch_of()
    noise = Noise(0, 0, batch.positions)
    return algorithm.critic_losses(algorithm.generate(batch, noise).detach(), batch, noise)


@pytest.mark.parametrize("gan_weight", [0.0, 0.1])
@pytest.mark.parametrize("source", SOURCES)
def test_the_students_loss_sends_no_gradient_to_the_critics(source: str, gan_weight: float) -> None:
    algorithm = make(feature_source=source, gan_weight=gan_weight)
    student_loss_of(algorithm)[0].backward()
    assert has_gradient(algorithm.student)
    for critic in (algorithm.fake, algorithm.heads, algorithm.teacher):
        assert not has_gradient(critic)
    trained = [p for w in (algorithm.fake, algorithm.heads) for p in w.parameters()]
    assert all(p.requires_grad for p in trained)  # thawed again


@pytest.mark.parametrize("source", SOURCES)
def test_what_each_critic_loss_trains(source: str) -> None:
    """Fig. 7: the discriminator's loss trains the heads, and the fake score only in (a)."""
    algorithm = make(feature_source=source)
    fake, discriminator, _ = critic_losses_of(algorithm)
    discriminator.backward()
    assert has_gradient(algorithm.heads)
    assert has_gradient(algorithm.fake) == (source == "fake_joint")
    before = [p.grad for p in algorithm.heads.parameters()]
    copies = [None if g is None else g.clone() for g in before]
    fake.backward()
    assert has_gradient(algorithm.fake)
    for grad, copy_ in zip(before, copies, strict=True):
        assert grad is copy_ is None or torch.equal(grad, copy_)
    assert not has_gradient(algorithm.student)


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


@pytest.mark.parametrize("source", SOURCES)
def test_without_gan_weight_the_heads_learn_and_features_keep_no_graph(source: str) -> None:
    algorithm = make(feature_source=source, gan_weight=0.0)
    extractor = algorithm.teacher if source == "teacher" else algorithm.fake
    both, alone = Spy(extractor, "x0_and_features"), Spy(extractor, "features")
    before = weights_of(algorithm)
    _figures, _ = algorithm.iteration(0, [batch_of()])
    assert moved(before, weights_of(algorithm)) == {"student", "fake", "heads"}
    assert not any(f.requires_grad for _, features in both.results for f in features)
    assert {f.requires_grad for fs in alone.results for f in fs} == {source == "fake_joint"}
    gap_alone = student_loss_of(make(feature_source=source, gan_weight=0.0))
    assert torch.equal(gap_alone[0], gap_alone[1]["loss/gap"])


def test_gan_weight_scales_the_students_gan_loss() -> None:
    loss, told = student_loss_of(make(gan_weight=0.25))
    torch.testing.assert_close(loss, told["loss/gap"] + 0.25 * told["loss/gan"])


@pytest.mark.parametrize("guidance", [1.0, 1.75])
@pytest.mark.parametrize("source", SOURCES)
def test_forward_passes_of_a_step(source: str, guidance: float) -> None:
    """Student step: student, fake, teacher, teacher unconditional unless w = 1, and no more.
    Critic step: fake, and the extractor's encoder once for real and fake together."""
    algorithm = make(feature_source=source, guidance=guidance)
    spies = {
        (name, method): Spy(getattr(algorithm, name), method)
        for name in ("student", "fake", "teacher")
        for method in ("forward", "x0_and_features", "features")
    }

    def calls() -> dict[tuple[str, str], int]:
        counted = {key: len(spy.calls) for key, spy in spies.items() if spy.calls}
        for spy in spies.values():
            spy.calls.clear()
        return counted

    extractor, other = ("teacher", "fake") if source == "teacher" else ("fake", "teacher")
    student_loss_of(algorithm)
    expected = {("student", "forward"): 1, (extractor, "x0_and_features"): 1}
    expected[other, "forward"] = 1
    if guidance != 1:
        expected["teacher", "forward"] = expected.get(("teacher", "forward"), 0) + 1
    assert calls() == expected
    critic_losses_of(algorithm)
    assert calls() == {
        ("student", "forward"): 1,
        ("fake", "forward"): 1,
        (extractor, "features"): 1,
    }


def test_guidance_is_applied_to_the_teacher_alone() -> None:
    algorithm = make(guidance=3.0, gan_weight=0.0)
    batch, noise = batch_of(), Noise(0, 0, torch.arange(BATCH))
    x = algorithm.generate(batch, noise).detach()
    x_t, t = algorithm._diffuse(x, noise, "score", algorithm.score_times)
    x0_fake, x0_teacher, _ = algorithm._scores(x_t, t, batch)
    cond, empty = algorithm.teacher(x_t, t, batch.c), algorithm.teacher(x_t, t, batch.null)
    torch.testing.assert_close(x0_teacher, empty + 3 * (cond - empty))
    torch.testing.assert_close(x0_fake, algorithm.fake(x_t, t, batch.c))


@pytest.mark.parametrize("source", SOURCES)
def test_ratio_and_scores_are_read_at_the_same_point(source: str) -> None:
    algorithm = make(feature_source=source)
    spies = [Spy(algorithm.teacher, "forward"), Spy(algorithm.teacher, "x0_and_features")]
    spies += [Spy(algorithm.fake, "forward"), Spy(algorithm.fake, "x0_and_features")]
    _, told = student_loss_of(algorithm)
    (first, second) = [call for spy in spies for call in spy.calls]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert torch.equal(first[1], told["t"])


def test_r1_perturbs_noised_data() -> None:
    algorithm = make(r1_noise=0.1)
    spy = Spy(algorithm.teacher, "features")
    _, _, told = critic_losses_of(algorithm)
    batch, noise = batch_of(), Noise(0, 0, torch.arange(BATCH))
    (x_t, t, c) = spy.calls[0]
    real, _, perturbed = x_t.chunk(3)
    t = t.chunk(3)[0]
    eps = noise.normal("eps/real", batch.x0)
    assert torch.equal(real, add_noise(batch.x0, eps, t, algorithm.teacher.schedule))
    torch.testing.assert_close(perturbed, real + 0.1 * noise.normal("r1", batch.x0))
    assert torch.equal(c, torch.cat([batch.c] * 3))
    assert told["loss/r1"] > 0


def test_no_r1_costs_nothing() -> None:
    algorithm = make(r1_gamma=0.0)
    spy = Spy(algorithm.teacher, "features")
    assert "loss/r1" not in critic_losses_of(algorithm)[2]
    assert len(spy.calls[0][0]) == 2 * BATCH


@pytest.mark.parametrize("source", SOURCES)
def test_an_empty_caption_changes_its_own_row_only(source: str) -> None:
    batch = batch_of()
    c = batch.c.clone()
    c[1] = batch.null[1]
    algorithm = make(feature_source=source, guidance=2.0)
    told = [student_loss_of(algorithm, b)[1] for b in (batch, replace(batch, c=c))]
    for figure in ("gap", "log_r"):
        same = torch.isclose(told[0][figure], told[1][figure], rtol=1e-4, atol=1e-5)
        assert same.tolist() == [True, False, True, True]


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


def test_the_student_is_called_once_at_the_last_time() -> None:
    algorithm, batch = make(), batch_of()
    spy = Spy(algorithm.student, "forward")
    x = algorithm.generate(batch, Noise(0, 0, batch.positions))
    ((z, t, c),) = spy.calls
    assert t.tolist() == [999] * BATCH
    assert torch.equal(c, batch.c)
    assert torch.equal(z, Noise(0, 0, batch.positions).normal("z", x))


def test_figures_carry_no_graph() -> None:
    figures, _ = make().iteration(0, micro_batches(2))
    assert not any(value.requires_grad for value in figures.values())
    assert {"gap", "log_r", "h", "t"} == {n for n, v in figures.items() if v.shape == (BATCH,)}
    assert {n for n in figures if n.startswith("grad/")} == {
        "grad/student",
        "grad/fake",
        "grad/heads",
    }
