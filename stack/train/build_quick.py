"""Composition of the quick evaluation while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stack.config.schema import DistillRecipe
from stack.evaluate.attributes import choose_prompts, distance, read_labelled, shared_judge
from stack.evaluate.extractors import KnownExtractor
from stack.evaluate.features import extract, load_judge
from stack.evaluate.frechet import Moments, frechet_distance
from stack.evaluate.reference import squares
from stack.parallel.collectives import Ranks
from stack.sample.generate import Sampler, generate
from stack.train.build import cache_of, device_of
from stack.train.build_suite import open_suite, plan_of, real_of
from stack.train.build_tools import tools_of
from stack.util.progress import progress

_DISTANCE = ("frechet_distance",)


def quick_measure(recipe: DistillRecipe, student: Sampler, ranks: Ranks) -> Callable[[], float]:
    """What measures the student: Frechet distance of ``evaluation.quick_samples`` pictures to
    real ones; each rank makes its share of the pictures. Neither making it nor calling it moves
    the random state.

    Of the suite digits, to the data in the judge's features; of another, as stack evaluate has it.
    """
    if not recipe.evaluation.quick_every:
        return lambda: float("nan")
    # Networks are filled at random before their weights are read.
    with torch.random.fork_rng():
        if recipe.evaluation.quick_suite == "digits":
            return _of_digits(recipe, student, ranks)
        return _of_suite(recipe, student, ranks)


def _of_digits(recipe: DistillRecipe, student: Sampler, ranks: Ranks) -> Callable[[], float]:
    wanted = recipe.evaluation
    assert recipe.data
    data = read_labelled(recipe.data.folders, cache_of(recipe.data))
    rows = choose_prompts(data, wanted.quick_samples, 0, recipe.seed)
    captions = [data.captions[row] for row in rows.tolist()]

    def prepare() -> None:
        if not wanted.judge:
            shared_judge(Path(recipe.out).parent, data)

    ranks.by_first(prepare)
    judge = load_judge(wanted.judge or Path(recipe.out).parent / "judge.safetensors")
    real = extract(judge, data.images)

    def measure() -> float:
        images = _shared(student, captions, torch.arange(len(captions)), recipe, ranks)
        parts = ranks.gather(extract(judge, images))
        return distance(torch.cat(parts)[: len(captions)], real)

    return measure


def _of_suite(recipe: DistillRecipe, student: Sampler, ranks: Ranks) -> Callable[[], float]:
    wanted, device = recipe.evaluation, device_of(recipe.device)
    opened = open_suite(wanted.quick_suite, wanted)
    plan = plan_of(
        opened,
        tools_of(opened.networks, opened.suite, _DISTANCE, device),
        seed=recipe.seed,
        batch=wanted.batch,
        subset=wanted.quick_samples,
        measures=_DISTANCE,
    )
    extractor = plan.tools.distance
    assert extractor
    folder = Path(recipe.out).parent / "references"
    found: list[Moments] = []

    def prepare() -> None:
        real = real_of(opened, plan, folder)
        kept = real.read(lambda count: progress("real pictures", total=count))
        found.append(kept.moments(device))

    ranks.by_first(prepare)

    def measure() -> float:
        images = _shared(student, plan.prompts.captions, plan.prompts.indices, recipe, ranks)
        parts = ranks.gather(_features(extractor, images, plan.resolution))
        score = [float("nan")]
        if ranks.first:
            moments = Moments(extractor.dim, device)
            moments.update(torch.cat(parts)[: len(plan.prompts)])
            score = [frechet_distance(moments, found[0])]
        return ranks.gather(score[0])[0]

    return measure


def _features(extractor: KnownExtractor, images: Tensor, resolution: int | None) -> Tensor:
    return extract(extractor, squares(images, resolution) if resolution else images, 32)


def _shared(
    student: Sampler,
    conditions: Sequence[str],
    indices: Tensor,
    recipe: DistillRecipe,
    ranks: Ranks,
) -> Tensor:
    """This rank's share of the pictures. As many for every rank, which generate in step where the
    student is cut over them; the last ones begin again from the first."""
    share = -(-len(conditions) // ranks.world_size)
    places = torch.arange(ranks.rank * share, (ranks.rank + 1) * share) % len(conditions)
    own = [conditions[place] for place in places.tolist()]
    return generate(
        student, own, seed=recipe.seed, batch=recipe.evaluation.batch, indices=indices[places]
    )
