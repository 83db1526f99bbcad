"""The judge: right on what it has not seen, the same again after saving, no trace on the RNG."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stack.evaluate.features import (
    FeatureExtractor,
    Judge,
    extract,
    hold_out,
    load_judge,
    save_judge,
    train_judge,
)
from stack.util.errors import UserError


@pytest.fixture(scope="module")
def trained(digits):
    held_out = hold_out(digits.scan, 0.2, seed=0)
    return train_judge(digits.images, digits.labels, digits.names, seed=0, held_out=held_out)


def test_judge_knows_scans_it_has_not_seen(trained, digits) -> None:
    """At 8 seeds .9963 to .9972 are right: the bar allows five times as many errors."""
    judge, accuracy = trained
    assert accuracy == judge.accuracy
    assert set(accuracy) == {"digit", "colour"}
    assert min(accuracy.values()) >= 0.98
    held_out = hold_out(digits.scan, 0.2, seed=0)
    guesses = judge.predict(digits.images[held_out])
    wanted = {name: values[held_out] for name, values in digits.labels.items()}
    right = torch.stack([guesses[name] == wanted[name] for name in wanted]).all(0)
    assert right.double().mean() >= 0.98


def test_features_tell_digits_apart_and_bear_faint_noise(trained, digits) -> None:
    """At 8 seeds the noise's share is .0006 to .0010."""
    judge, _ = trained
    images = digits.images[:600]
    noisy = images + torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * 4
    plain, moved = extract(judge, images), extract(judge, noisy.clamp(0, 255).byte())
    spread = (plain - plain.mean(0)).square().sum(1).mean()
    assert (plain - moved).square().sum(1).mean() < 0.02 * spread


def test_features_do_not_depend_on_the_batch(trained, digits) -> None:
    extractor: FeatureExtractor = trained[0]
    images = digits.images[:50]
    whole = extract(extractor, images)
    assert whole.shape == (50, extractor.dim)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(extract(extractor, images, batch_size=7), whole, rtol=0, atol=1e-5)


def test_saved_judge_comes_back_whole(trained, digits, tmp_path: Path) -> None:
    judge, accuracy = trained
    save_judge(judge, tmp_path / "judge.safetensors")
    again = load_judge(tmp_path / "judge.safetensors")
    assert again.names == digits.names
    assert again.accuracy == accuracy
    assert again.fingerprint == judge.fingerprint
    assert again.trained_on == judge.trained_on
    assert len(again.fingerprint) == len(again.trained_on) == 64
    images = digits.images[:20]
    assert torch.equal(again.features(images), judge.features(images))
    assert not again.features(images).requires_grad


def test_the_fingerprint_is_of_the_weights(trained, digits) -> None:
    """Of equal data, two judges differ; reading one does not move the random state."""
    first, second = (_short(digits, seed) for seed in (0, 1))
    assert first.trained_on == second.trained_on
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == _short(digits, 0).fingerprint


def _short(digits, seed: int, flip: bool = False) -> Judge:
    images = digits.images[:120]
    labels = {name: values[:120] for name, values in digits.labels.items()}
    if flip:
        labels["digit"] = labels["digit"].flip(0)
    held_out = torch.arange(120) >= 60
    return train_judge(images, labels, digits.names, seed=seed, held_out=held_out, steps=3)[0]


def test_training_is_repeatable_and_leaves_the_global_rng_alone(digits) -> None:
    before = torch.random.get_rng_state()
    a, b, other = _short(digits, 5), _short(digits, 5), _short(digits, 6)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.heads["digit"].weight, other.heads["digit"].weight)


def test_fingerprint_is_of_pictures_and_labels(digits) -> None:
    assert _short(digits, 5).trained_on == _short(digits, 6).trained_on
    assert _short(digits, 5).trained_on != _short(digits, 5, flip=True).trained_on


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_hold_out_keeps_groups_whole(fraction: float) -> None:
    groups = torch.arange(100).repeat_interleave(6)[torch.randperm(600)]
    mask = hold_out(groups, fraction, seed=1)
    held = set(groups[mask].tolist())
    assert len(held) == round(100 * fraction)
    assert not held & set(groups[~mask].tolist())


def test_a_file_that_is_no_judge_is_the_users_mistake(tmp_path: Path) -> None:
    garbled, foreign = tmp_path / "garbled", tmp_path / "foreign"
    garbled.write_bytes(b"not a safetensors file at all")
    save_file({"a": torch.zeros(1)}, foreign)
    for path, message in (
        (tmp_path / "missing", "no such file"),
        (garbled, "not a safetensors file"),
        (foreign, "not a judge's file"),
    ):
        with pytest.raises(UserError, match=message):
            load_judge(path)
