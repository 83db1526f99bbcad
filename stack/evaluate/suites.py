"""Evaluations under one name: which conditions, how many, at what size, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stack.evaluate.prompts import Prompts
from stack.sample.generate import Sampler, generate
from stack.util.errors import UserError

_COCO = "https://cocodataset.org: captions_val2014.json of annotations_trainval2014.zip"
_VAL2014 = "https://cocodataset.org: the pictures of val2014.zip"
_FREQUENT = ("frechet_distance", "recall", "precision")
_QUALITY = (*_FREQUENT, "clip_score")

CLASSES_BLOCK = 500
"""A block of pictures of classes, which are small."""


@dataclass(frozen=True)
class Suite:
    """One row of the table below, or a file of the user's own.

    Args:
        source: where its captions file comes from; empty where it has classes.
        real: where the real pictures come from; empty where none are needed.
        prompts: how many of the captions, None for all; or pictures of all classes.
        measures: keys of evaluation.json. published: data sets of `stack.report.published`.
        per_prompt: pictures of each prompt. resolution: side of generated and real pictures
            before a network sees them; None for their own. classes: of the condition.
        resize: who brings pictures to Inception's size, as `stack.evaluate.inception` has it.
        block: prompts that one rank works on in one go, and pictures made at once at most.
        labelled: the prompts are captions of the run's own data, whose attributes a judge names.
    """

    source: str
    prompts: int | None
    measures: tuple[str, ...]
    published: tuple[str, ...] = ()
    per_prompt: int = 1
    resolution: int | None = 512
    real: str = ""
    classes: int | None = None
    resize: Literal["clean", "network"] = "clean"
    block: int = 32
    labelled: bool = False

    def conditions(self, captions: Prompts | None, subset: int | None, seed: int) -> Prompts:
        """The conditions to draw, ``subset`` of them if given.

        Args:
            captions: of the captions file; None for a suite of classes.

        Raises:
            UserError: there are not so many.
        """
        if captions is None:
            assert self.classes
            assert self.prompts
            if subset and subset > self.prompts:
                raise UserError(f"--subset: {subset}: the suite has {self.prompts} pictures")
            return class_prompts(subset or self.prompts, self.classes)
        count = None if self.prompts is None else min(self.prompts, len(captions))
        return captions.subset(subset or count, seed)


SUITES = {
    "coco30k": Suite(_COCO, 30_000, measures=_QUALITY, published=("coco30k",), real=_VAL2014),
    "coco_similarity": Suite(
        _COCO,
        1_000,
        measures=("in_batch_similarity",),
        published=("coco_similarity",),
        per_prompt=4,
    ),
    "parti": Suite(
        "https://github.com/google-research/parti: PartiPrompts.tsv",
        None,
        measures=("in_batch_similarity", "clip_score"),
        published=("parti",),
        per_prompt=4,
    ),
    "hpsv2": Suite(
        "https://huggingface.co/datasets/zhwang/HPDv2: the four lists in benchmark",
        None,
        measures=("hps_score", "clip_score"),
        published=("hpsv2",),
    ),
    "cifar10": Suite(
        "",
        50_000,
        measures=_FREQUENT,
        published=("cifar10",),
        resolution=None,
        real="python -m data_prep cifar10",
        classes=10,
        resize="network",
        block=CLASSES_BLOCK,
    ),
    "imagenet64": Suite(
        "",
        50_000,
        measures=_FREQUENT,
        published=("imagenet64",),
        resolution=None,
        real="python -m data_prep imagenet64",
        classes=1000,
        resize="network",
        block=CLASSES_BLOCK,
    ),
    "digits": Suite(
        "the run's data",
        None,
        measures=(*_FREQUENT, "caption_accuracy", "mode_tv"),
        resolution=None,
        real="the run's data",
        block=250,
        labelled=True,
    ),
}
"""The paper does not say of how many prompts and pictures its similarity is: ours are a choice."""


def class_prompts(count: int, classes: int) -> Prompts:
    """The numbers of classes 0, 1, ..., 0, 1, ... as conditions: as many of each as can be, and a
    smaller count is the beginning of a larger one."""
    numbers = [str(index % classes) for index in range(count)]
    return Prompts(numbers, torch.arange(count), [""] * count)


def sample_seed(seed: int, sample: int) -> int:
    """The seed of the sample-th picture of every prompt; the first sample's is that of ``stack
    sample``."""
    return seed + (sample << 32)


def draw(
    model: Sampler,
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
    some = slice(rows.start, rows.stop)
    return generate(
        model,
        prompts.captions[some],
        seed=sample_seed(seed, sample),
        batch=batch,
        indices=prompts.indices[some],
        on_batch=on_batch,
    )
