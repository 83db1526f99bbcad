"""Prompts by what their captions leave open, and the figures of a set of pictures."""

from __future__ import annotations

import pytest
import torch

from stack.evaluate.attributes import (
    Labelled,
    asked,
    choose_prompts,
    halves_distance,
    judged,
    real_reference,
)
from stack.evaluate.features import Judge
from stack.evaluate.frechet import Moments, frechet_distance
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


def judge_of() -> Judge:
    torch.manual_seed(0)
    return Judge(NAMES, size=8, trained_on="").eval().requires_grad_(False)


def test_real_pictures_under_their_own_captions_are_right_as_often_as_the_judge_is() -> None:
    data, judge = labelled(), judge_of()
    answers = judged(judge, data.images, 32)
    found = asked(data, judge, torch.arange(len(data.captions))).figures(answers[:, None])
    predicted = judge.predict(data.images)
    right = torch.stack([predicted[k] == data.labels[k] for k in NAMES]).all(0)
    accuracy = found["caption_accuracy"]
    assert accuracy.value == pytest.approx(float(right[data.whole].double().mean()))
    assert accuracy.samples == int(data.whole.sum())
    drawn = torch.bincount(predicted["digit"][data.vague], minlength=3) / data.vague.sum()
    assert found["mode_tv"].value == pytest.approx(float((drawn - 1 / 3).abs().sum() / 2), abs=1e-6)


@pytest.mark.parametrize(("wrong", "accuracy"), [("colour", 0.5), ("digit", 0.5), (None, 1.0)])
def test_all_that_a_caption_gives_must_be_right(wrong: str | None, accuracy: float) -> None:
    """Of two pictures of each prompt, the second has an attribute wrong."""
    data, judge = labelled(), judge_of()
    answers = torch.stack([data.labels[name] for name in NAMES], 1)[:, None].repeat(1, 2, 1)
    if wrong:
        answers[:, 1, list(NAMES).index(wrong)] += 1
    rows = data.whole.nonzero()[:, 0]
    found = asked(data, judge, rows).figures(answers[rows])
    assert found["caption_accuracy"].value == accuracy
    assert "mode_tv" not in found


def test_a_judge_of_other_attributes_is_refused() -> None:
    judge = Judge({"shape": ["round", "flat"]}, size=8)
    with pytest.raises(UserError, match="judge: of shape: not of the attributes of the data"):
        asked(labelled(), judge, torch.arange(4))


def test_the_data_are_a_reference() -> None:
    data, judge = labelled(), judge_of()
    found = real_reference(judge, data, "data")
    assert found.features is not None
    own = Moments(judge.dim).update(found.features)
    assert frechet_distance(own, found.moments()) == pytest.approx(0, abs=1e-6)
    assert (found.count, found.facts["fingerprint"]) == (120, judge.fingerprint)
    assert halves_distance(judge, data, 0) > 0
