"""Named evaluations, and pictures that depend on the prompt's place alone."""

from __future__ import annotations

import pytest
import torch

from stack.evaluate.prompts import STYLES, Prompts
from stack.evaluate.stored import BlockStore
from stack.evaluate.suites import SUITES, class_prompts, draw, sample_seed
from stack.nets.sd15 import SDDenoiser, load_schedule, load_unet
from stack.nets.text import load_text
from stack.nets.vae import load_vae
from stack.report.published import datasets, rows
from stack.sample.generate import TextToImage, generate
from stack.util.errors import UserError
from tests.pipeline import World, caption


@pytest.fixture(scope="module")
def model(world: World) -> TextToImage:
    denoiser = SDDenoiser(load_unet(world.teacher), *load_schedule(world.teacher)).eval()
    cpu = torch.device("cpu")
    return TextToImage(denoiser, load_text(world.teacher), load_vae(world.teacher), cpu)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    captions = [caption(number) for number in range(50)]
    return Prompts(captions, torch.arange(50), [""] * 50)


@pytest.mark.parametrize("name", [name for name in SUITES if not SUITES[name].labelled])
def test_suites_can_be_compared_with_published_figures(name: str) -> None:
    suite = SUITES[name]
    assert suite.published
    assert set(suite.published) <= set(datasets())
    assert suite.source.startswith("https://") == (suite.classes is None)
    assert bool(suite.real) == ("frechet_distance" in suite.measures)
    assert (suite.per_prompt > 1) == ("in_batch_similarity" in suite.measures)
    measured = set(suite.measures) | ({"latency_seconds"})
    measured |= {f"hps_{style}" for style in STYLES if "hps_score" in suite.measures}
    for dataset in suite.published:
        assert {metric for row in rows(dataset) for metric in row.metrics} <= measured


@pytest.mark.parametrize("batch", [1, 3, 7, 50])
def test_noise_is_bit_identical_at_any_batch_size(model: TextToImage, batch: int) -> None:
    places = torch.arange(50)
    for step in (0, 3):
        whole = model.noise(5, places, step)
        parts = torch.cat([model.noise(5, part, step) for part in places.split(batch)])
        assert torch.equal(parts, whole)


def test_noise_is_of_the_place_the_sample_and_the_seed(model: TextToImage) -> None:
    places = torch.tensor([7, 3, 30_000])
    first = model.noise(sample_seed(0, 0), places)
    assert torch.equal(first, model.noise(0, places))
    assert torch.equal(first[1], model.noise(0, torch.tensor([3]))[0])
    others = [
        model.noise(sample_seed(0, 1), places),
        model.noise(1, places),
        model.noise(0, places, step=1),
    ]
    for other in others:
        assert (other != first).float().mean() > 0.99
    assert abs(float(model.noise(0, torch.arange(500)).std()) - 1) < 0.02


def test_classes_come_in_equal_shares_and_a_subset_is_the_beginning() -> None:
    whole = class_prompts(50, 10)
    assert {whole.captions.count(str(number)) for number in range(10)} == {5}
    some = SUITES["cifar10"].conditions(None, 20, seed=3)
    assert some.captions == whole.captions[:20]
    assert torch.equal(some.indices, whole.indices[:20])
    assert len(SUITES["imagenet64"].conditions(None, None, 0)) == 50_000
    with pytest.raises(UserError, match="--subset: 50001: the suite has 50000 pictures"):
        SUITES["cifar10"].conditions(None, 50_001, 0)


def test_a_suite_of_captions_takes_as_many_as_it_says(prompts: Prompts) -> None:
    assert len(SUITES["coco30k"].conditions(prompts, None, 0)) == len(prompts)
    assert len(SUITES["coco30k"].conditions(prompts, 7, 0)) == 7


@pytest.mark.parametrize("batch", [1, 5, 32])
def test_pictures_do_not_depend_on_the_batch(
    model: TextToImage, prompts: Prompts, batch: int
) -> None:
    found = draw(model, prompts, range(3, 20), seed=2, batch=batch)
    wanted = generate(model, prompts.captions, seed=2, batch=50)[3:20]
    assert found.dtype == torch.uint8
    assert (found.int() - wanted.int()).abs().max() <= 1


def test_a_subset_draws_the_pictures_of_the_whole(model: TextToImage, prompts: Prompts) -> None:
    some = prompts.subset(6, seed=0)
    told: list[int] = []
    found = draw(model, some, range(6), seed=2, batch=4, on_batch=told.append)
    whole = draw(model, prompts, range(50), seed=2, batch=50)
    assert (found.int() - whole[some.indices].int()).abs().max() <= 1
    assert told == [4, 2]


def test_an_evaluation_has_the_same_bits_on_any_number_of_ranks(
    model: TextToImage, prompts: Prompts, tmp_path
) -> None:
    def make(block: range) -> dict[str, torch.Tensor]:
        return {"pictures": draw(model, prompts, block, seed=0, batch=16)}

    for ranks in (1, 2, 3):
        for rank in range(ranks):
            store = BlockStore(tmp_path / str(ranks), {"seed": 0}, 50, 16)
            store.run(make, rank=rank, world_size=ranks)
        whole = BlockStore(tmp_path / "1", {"seed": 0}, 50, 16).read()["pictures"]
        assert torch.equal(store.read()["pictures"], whole)
