"""The student's and the critics' step: what is called, where it is read, what it trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stack.diffusion.schedule import add_noise
from stack.fdistill.algorithm import Noise
from tests.fdistill.tiny_run import (
    BATCH,
    SOURCES,
    Spy,
    batch_of,
    critic_losses_of,
    has_gradient,
    make,
    moved,
    student_loss_of,
    weights_of,
)


@pytest.mark.parametrize("gan_weight", [0.0, 0.1])
@pytest.mark.parametrize("source", SOURCES)
def test_the_students_loss_sends_no_gradient_to_the_critics(source: str, gan_weight: float) -> None:
    algorithm = make(feature_source=source, gan_weight=gan_weight)
    with algorithm.fake_weights.frozen(), algorithm.heads_weights.frozen():
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


def test_the_student_is_called_once_at_the_last_time() -> None:
    algorithm, batch = make(), batch_of()
    spy = Spy(algorithm.student, "forward")
    x = algorithm.generate(batch, Noise(0, 0, batch.positions))
    ((z, t, c),) = spy.calls
    assert t.tolist() == [999] * BATCH
    assert torch.equal(c, batch.c)
    assert torch.equal(z, Noise(0, 0, batch.positions).normal("z", x))
