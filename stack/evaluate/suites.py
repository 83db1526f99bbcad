"""Evaluations under one name: which captions, how many, at what size, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stack.evaluate.prompts import Prompts
from stack.sample.generate import TextToImage
from stack.util import keyed


@dataclass(frozen=True)
class Suite:
    """One row of the table below.

    Args:
        source: where its captions file comes from. prompts: how many of it; None for all.
        per_prompt: pictures of each prompt. resolution: their side; None for the model's own.
        measures: keys of evaluation.json. published: data sets of `stack.report.published`.
    """

    source: str
    prompts: int | None
    measures: tuple[str, ...]
    published: tuple[str, ...] = ()
    per_prompt: int = 1
    resolution: int | None = 512


_QUALITY = ("frechet_distance", "recall", "precision", "clip_score")

SUITES = {
    "coco30k": Suite(
        source="https://cocodataset.org: captions_val2014.json of annotations_trainval2014.zip",
        prompts=30_000,
        measures=_QUALITY,
        published=("coco30k",),
    ),
    "coco_similarity": Suite(
        source="https://cocodataset.org: captions_val2014.json of annotations_trainval2014.zip",
        prompts=1_000,
        measures=("in_batch_similarity",),
        published=("coco_similarity",),
        per_prompt=4,
    ),
    "parti": Suite(
        source="https://github.com/google-research/parti: PartiPrompts.tsv",
        prompts=None,
        measures=("in_batch_similarity", "clip_score"),
        published=("parti",),
        per_prompt=4,
    ),
    "hpsv2": Suite(
        source="https://huggingface.co/datasets/zhwang/HPDv2: the four lists in benchmark",
        prompts=None,
        measures=("hps_score",),
        published=("hpsv2",),
    ),
}
"""The paper does not say of how many prompts and pictures its similarity is: ours are a choice."""


def captions_suite(measures: tuple[str, ...] = _QUALITY) -> Suite:
    """What a captions file of the user's own is measured by: every caption once."""
    return Suite("the user", None, measures, resolution=None)


def noise(model: TextToImage, seed: int, indices: Tensor, sample: int = 0) -> Tensor:
    """Unit noise (B, 4, h, w) of the sample-th picture of prompts ``indices`` (B,): a function of
    these and the seed alone; the first sample's is that of ``stack sample``."""
    first = model.noise(seed, indices[:1])
    return keyed.normal(
        first.shape[1:], seed=seed, iteration=sample, role="sample", positions=indices
    )


def draw(
    model: TextToImage,
    prompts: Prompts,
    rows: range,
    *,
    seed: int,
    batch: int,
    sample: int = 0,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Pictures of a block of prompts, uint8 (B, 3, H, W) on the CPU.

    Args:
        rows: places in ``prompts``. batch: pictures made at once; the noise does not depend on it.
        sample: which of a prompt's pictures. on_batch: called with their number after every batch.
    """
    device = next(model.text.parameters()).device
    pictures = []
    for start in range(rows.start, rows.stop, batch):
        some = slice(start, min(start + batch, rows.stop))
        ids, _ = model.text.tokenize(prompts.captions[some])
        unit = noise(model, seed, prompts.indices[some].to(device), sample)
        pictures.append(model.images(ids.to(device), unit).cpu())
        on_batch(len(ids))
    return torch.cat(pictures)
