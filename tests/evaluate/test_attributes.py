"""Prompts by what their captions leave open, and the figures of a set of pictures."""

from __future__ import annotations

import pytest
import torch

from stack.evaluate.attributes import Labelled, choose_prompts, distance, figures
from stack.evaluate.features import Judge
from stack.util.errors import UserError

NAMES = {"colour": ["blue", "red"], "digit": ["one", "three", "two"]}


def labelled(count: int = 120, size: int = 8) -> Labelled:
    """Every second caption gives both attributes, then in turn only one of them."""
    number = torch.arange(count)
    generator = torch.Generator().manual_seed(0)
    return Labelled(
        images=torch.randint(0, 256, (count, 3, size, size), generator=generator).byte(),
        captions=[str(i) for i in range(count)],
        labels={"colour": number % 2, "digit": number % 3},
        names=NAMES,
        stated={"colour": number % 4 != 3, "digit": number % 4 != 1},
        groups=number,
    )


@pytest.mark.parametrize(("samples", "vague"), [(40, 10), (40, 0), (10, 10), (500, 200)])
def test_prompts_are_vague_as_often_as_asked(samples: int, vague: int) -> None:
    data = labelled()
    rows = choose_prompts(data, samples, vague, seed=0)
    assert len(rows) == samples
    assert int(data.vague[rows].sum()) == vague
    assert int(data.whole[rows].sum()) == samples - vague
    assert torch.equal(rows, choose_prompts(data, samples, vague, seed=0))
    assert not torch.equal(rows, choose_prompts(data, samples, vague, seed=1))


def test_the_modes_are_those_of_the_richest_attribute() -> None:
    data = labelled()
    assert data.modes == "digit"
    assert torch.equal(data.vague, ~data.stated["digit"] & data.stated["colour"])


def test_data_without_vague_captions_are_refused() -> None:
    data = labelled()
    whole = torch.ones(len(data.captions), dtype=torch.bool)
    without = Labelled(**{**vars(data), "stated": {"colour": whole, "digit": whole}})
    with pytest.raises(UserError, match="leave digit open"):
        choose_prompts(without, 10, 5, seed=0)


def test_real_pictures_under_their_own_captions_have_perfect_figures() -> None:
    data = labelled()
    judge = Judge(NAMES, size=8, trained_on="").eval().requires_grad_(False)
    real = judge(data.images)
    found = figures(judge, data, real, torch.arange(len(data.captions)), data.images)
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert (found["precision"], found["recall"]) == (1, 1)
    predicted = judge.logits(real)
    right = torch.stack([predicted[k].argmax(1) == data.labels[k] for k in NAMES]).all(0)
    assert found["caption_accuracy"] == pytest.approx(float(right[data.whole].double().mean()))
    assert distance(real, real + 1) == pytest.approx(real.shape[1], rel=1e-6)
