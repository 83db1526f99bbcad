"""Class-conditional models, styles and speed, by samplers whose pictures are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stack.evaluate.clip import load_clip
from stack.evaluate.measure import Plan, Tools, figures, run_blocks, speed
from stack.evaluate.prompts import STYLES, Prompts
from stack.evaluate.reference import Reference
from stack.evaluate.suites import class_prompts
from stack.sample.generate import Sampler
from tests.evaluate.networks import save_clip
from tests.evaluate.test_classifier import CLASSES, classed, train

CPU = torch.device("cpu")


class FromData:
    """A perfect class-conditional model: the data's own pictures of a class, by the index."""

    classes, nfe, device = CLASSES, 3, CPU

    def __init__(self, wrong: int = 0) -> None:
        self.images, self.labels = classed()
        self.wrong, self.calls = wrong, 0

    def pictures(self, conditions: Sequence[str], indices: Tensor, seed: int) -> Tensor:
        self.calls += 1
        rows = []
        for condition, index in zip(conditions, indices.tolist(), strict=True):
            own = (self.labels == (int(condition) + self.wrong) % CLASSES).nonzero()[:, 0]
            rows.append(own[(index // CLASSES + seed) % len(own)])
        return self.images[torch.stack(rows)]


@pytest.fixture(scope="module")
def classifier():
    return train()


def plan_of(classifier, count: int = 400) -> Plan:
    measures = ("frechet_distance", "recall", "precision", "class_accuracy")
    tools = Tools(distance=classifier, classifier=classifier)
    return Plan(class_prompts(count, CLASSES), measures, tools, seed=0, batch=50)


def reference_of(classifier) -> Reference:
    features = classifier(classed()[0])
    centred = features.double() - features.double().mean(0)
    covariance = centred.T @ centred / (len(features) - 1)
    return Reference(features.double().mean(0), covariance, len(features), features, {})


def test_a_perfect_class_conditional_model(classifier, tmp_path: Path) -> None:
    model: Sampler = FromData()
    plan = plan_of(classifier)
    store = run_blocks(model, plan, tmp_path, {"model": "data"})
    found = figures(store.read(), plan, reference_of(classifier), CPU)
    assert found["frechet_distance"].value == pytest.approx(0, abs=1e-3)
    assert found["recall"].value == found["precision"].value == 1
    right = (classifier.predict(classed()[0]) == classed()[1]).double().mean()
    assert found["class_accuracy"].value == pytest.approx(right.item())
    assert found["class_accuracy"].samples == 400
    assert found["class_accuracy"].few


def test_a_model_that_draws_the_next_class(classifier, tmp_path: Path) -> None:
    """Its pictures are as good as any; that they are the wrong ones, the classes alone tell."""
    plan = plan_of(classifier)
    store = run_blocks(FromData(wrong=1), plan, tmp_path, {"model": "wrong"})
    found = figures(store.read(), plan, reference_of(classifier), CPU)
    assert found["frechet_distance"].value == pytest.approx(0, abs=1e-3)
    assert found["class_accuracy"].value < 0.1


def test_blocks_are_of_the_model_the_seed_and_the_networks(classifier, tmp_path: Path) -> None:
    model, plan = FromData(), plan_of(classifier, 64)
    first = run_blocks(model, plan, tmp_path, {"weights": "a"}).folder
    calls = model.calls
    assert run_blocks(model, plan, tmp_path, {"weights": "a"}).folder == first
    assert model.calls == calls
    others = {
        run_blocks(model, plan, tmp_path, {"weights": "b"}).folder,
        run_blocks(model, Plan(**{**vars(plan), "seed": 1}), tmp_path, {"weights": "a"}).folder,
        run_blocks(model, Plan(**{**vars(plan), "resolution": 16}), tmp_path, {}).folder,
    }
    assert len(others | {first}) == 4
    other = train(seed=1, epochs=1)
    tools = Tools(distance=other, classifier=other)
    changed = Plan(**{**vars(plan), "tools": tools})
    assert run_blocks(model, changed, tmp_path, {"weights": "a"}).folder != first


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_write_the_files_of_one(classifier, tmp_path: Path, world_size: int) -> None:
    plan = plan_of(classifier, 150)
    stores = {}
    for ranks in (1, world_size):
        for rank in range(ranks):
            root = tmp_path / str(ranks)
            stores[ranks] = run_blocks(FromData(), plan, root, {}, rank=rank, world_size=ranks)
    one, several = (
        {p.name: p.read_bytes() for p in store.folder.glob("*.safetensors")}
        for store in stores.values()
    )
    assert len(one) == 5
    assert one == several


def test_styles_have_figures_of_their_own(classifier, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    groups = [STYLES[number % 4] for number in range(40)]
    captions = [str(number % CLASSES) for number in range(40)]
    prompts = Prompts(captions, torch.arange(40), groups)
    tools = Tools(hps=load_clip(tmp_path / "clip"))
    plan = Plan(prompts, ("hps_score",), tools, seed=0, per_prompt=2)
    rows = run_blocks(FromData(), plan, tmp_path / "blocks", {}).read()
    found = figures(rows, plan, None, CPU)
    assert set(found) == {"hps_score", *(f"hps_{style}" for style in STYLES)}
    parts = [found[f"hps_{style}"] for style in STYLES]
    assert sum(part.value for part in parts) / 4 == pytest.approx(found["hps_score"].value)
    assert {part.samples for part in parts} == {10}
    assert rows["hps_score"].shape == (40, 2)


def test_speed_is_of_one_picture_and_of_a_batch(classifier) -> None:
    model = FromData()
    found = speed(model, plan_of(classifier, 40))
    assert found["nfe"] == 3
    assert found["latency_seconds"] > 0
    assert found["images_per_second"] > 0
    assert model.calls == (1 + 5) + (1 + 3)  # Each with a warm-up.
