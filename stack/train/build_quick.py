"""Composition of the quick evaluation while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stack.config.schema import DistillRecipe
from stack.evaluate.attributes import choose_prompts, read_labelled, shared_judge
from stack.evaluate.diversity import in_batch_similarity, mode_counts, mode_entropy
from stack.evaluate.features import extract, load_judge
from stack.evaluate.frechet import Moments, frechet_distance
from stack.evaluate.reference import squares
from stack.evaluate.suites import sample_seed
from stack.parallel.collectives import Ranks
from stack.sample.generate import Sampler, generate
from stack.train.build import cache_of, device_of
from stack.train.build_suite import open_suite, plan_of, real_of
from stack.train.build_tools import tools_of
from stack.train.task import SCORE
from stack.util.progress import progress

_EXTRACTED = 32
"""Pictures that a network sees at once, as in stack evaluate."""
_GROUPS, _ALIKE = 16, 4
"""Conditions whose likeness is taken, and pictures of each."""


@dataclass(frozen=True)
class _View:
    """What a quick evaluation looks at.

    Args:
        conditions: of the pictures. indices: int64, as many, which key their noise.
        look: from uint8 pictures to features (B, D) and, where a classifier is at hand, modes
            (B,) int64. modes: how many; 0 without a classifier.
        real: moments of the real pictures' features; the first rank needs them.
    """

    conditions: Sequence[str]
    indices: Tensor
    look: Callable[[Tensor], tuple[Tensor, Tensor]]
    modes: int
    real: Moments | None


def quick_measure(
    recipe: DistillRecipe, student: Sampler, ranks: Ranks
) -> Callable[[], dict[str, float]]:
    """What measures the student: of ``evaluation.quick_samples`` pictures the Frechet distance to
    real ones and, where a classifier is at hand, the entropy of the modes it sees; and how alike
    pictures of one condition are. Each rank makes its share of the pictures. Neither making it nor
    calling it moves the random state.

    Of the suite digits, to the data in the judge's features; of another, as stack evaluate has it.
    """
    if not recipe.evaluation.quick_every:
        return dict
    # Networks are filled at random before their weights are read.
    with torch.random.fork_rng():
        of = _digits if recipe.evaluation.quick_suite == "digits" else _suite
        view = of(recipe, ranks)

    def measure() -> dict[str, float]:
        features, modes = _seen(view, student, recipe, ranks, len(view.conditions))
        alike = [features[:_GROUPS]]
        for sample in range(1, _ALIKE):
            alike.append(_seen(view, student, recipe, ranks, _GROUPS, sample)[0])
        found = {"in_batch_similarity": in_batch_similarity(torch.stack(alike, 1))}
        if view.modes:
            found["mode_entropy"] = mode_entropy(mode_counts(modes, view.modes))
        score = [0.0]
        if ranks.first:
            assert view.real
            moments = Moments(features.shape[1], view.real.mean.device).update(features)
            score = [frechet_distance(moments, view.real)]
        return {SCORE: ranks.gather(score[0])[0], **found}

    return measure


def _digits(recipe: DistillRecipe, ranks: Ranks) -> _View:
    wanted = recipe.evaluation
    assert recipe.data
    data = read_labelled(recipe.data.folders, cache_of(recipe.data))
    rows = choose_prompts(data, wanted.quick_samples, 0, recipe.seed)

    def prepare() -> None:
        if not wanted.judge:
            shared_judge(Path(recipe.out).parent, data)

    ranks.by_first(prepare)
    judge = load_judge(wanted.judge or Path(recipe.out).parent / "judge.safetensors")
    real = Moments(judge.dim).update(extract(judge, data.images))

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        features = extract(judge, images)
        return features, judge.logits(features)[data.modes].argmax(1)

    captions = [data.captions[row] for row in rows.tolist()]
    modes = len(data.names[data.modes])
    return _View(captions, torch.arange(len(captions)), look, modes, real)


def _suite(recipe: DistillRecipe, ranks: Ranks) -> _View:
    wanted, device = recipe.evaluation, device_of(recipe.device)
    opened = open_suite(wanted.quick_suite, wanted)
    plan = plan_of(
        opened,
        tools_of(opened.networks, opened.suite, (SCORE,), device),
        seed=recipe.seed,
        batch=wanted.batch,
        subset=wanted.quick_samples,
        measures=(SCORE,),
    )
    extractor, classifier = plan.tools.distance, plan.tools.classifier
    assert extractor
    folder = Path(recipe.out).parent / "references"
    found: list[Moments] = []

    def prepare() -> None:
        real = real_of(opened, plan, folder)
        kept = real.read(lambda count: progress("real pictures", total=count))
        found.append(kept.moments(device))

    ranks.by_first(prepare)

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        shown = squares(images, plan.resolution) if plan.resolution else images
        modes = classifier.predict(shown) if classifier else torch.zeros(len(images))
        return extract(extractor, shown, _EXTRACTED), modes.long()

    modes = len(classifier.training.classes) if classifier else 0
    return _View(plan.prompts.captions, plan.prompts.indices, look, modes, next(iter(found), None))


def _seen(
    view: _View, student: Sampler, recipe: DistillRecipe, ranks: Ranks, first: int, sample: int = 0
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and modes (N,) of the sample-th picture of each of the first conditions, on
    every rank.

    Each rank makes as many, for they generate in step where the student is cut over them; the last
    ones begin again from the first condition."""
    count = min(first, len(view.conditions))
    share = -(-count // ranks.world_size)
    places = torch.arange(ranks.rank * share, (ranks.rank + 1) * share) % count
    own = [view.conditions[place] for place in places.tolist()]
    images = generate(
        student,
        own,
        seed=sample_seed(recipe.seed, sample),
        batch=recipe.evaluation.batch,
        indices=view.indices[places],
    )
    features, modes = zip(*ranks.gather(view.look(images)), strict=True)
    return torch.cat(features)[:count], torch.cat(modes)[:count]
