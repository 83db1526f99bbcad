"""Composition of the quick evaluation while training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from stack.config.schema import DistillRecipe
from stack.evaluate.attributes import choose_prompts, distance, read_labelled, shared_judge
from stack.evaluate.features import extract, load_judge
from stack.parallel.collectives import Ranks
from stack.sample.generate import TextToImage, generate
from stack.train.build import cache_of


def quick_measure(recipe: DistillRecipe, student: TextToImage, ranks: Ranks) -> Callable[[], float]:
    """What measures the student: Frechet distance of ``evaluation.quick_samples`` pictures to
    the data, in the judge's features; each rank makes its share of the pictures."""
    wanted = recipe.evaluation
    if not wanted.quick_every:
        return lambda: float("nan")
    assert recipe.data
    data = read_labelled(recipe.data.folders, cache_of(recipe.data))
    rows = choose_prompts(data, wanted.quick_samples, 0, recipe.seed)
    captions = [data.captions[row] for row in rows.tolist()]
    # As many for every rank, which generate in step where the student is cut over them.
    share = -(-len(captions) // ranks.world_size)
    own = (captions * 2)[ranks.rank * share :][:share]

    def prepare() -> None:
        if not wanted.judge:
            shared_judge(Path(recipe.out).parent, data)

    ranks.by_first(prepare)
    judge = load_judge(wanted.judge or Path(recipe.out).parent / "judge.safetensors")
    real = extract(judge, data.images)

    def measure() -> float:
        first = ranks.rank * share
        images = generate(student, own, seed=recipe.seed, batch=wanted.batch, first=first)
        parts = ranks.gather(extract(judge, images))
        return distance(torch.cat(parts)[: len(captions)], real)

    return measure
