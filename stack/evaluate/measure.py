"""One model through one suite: features and scores of its pictures, and figures of these."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stack.evaluate.attributes import Asked, judged
from stack.evaluate.classifier import Classifier
from stack.evaluate.clip import Clip
from stack.evaluate.diversity import group_similarities
from stack.evaluate.extractors import KnownExtractor
from stack.evaluate.features import Judge, extract
from stack.evaluate.hps import hps_scores
from stack.evaluate.intervals import (
    Estimate,
    frechet_estimate,
    manifold_estimates,
    mean_estimate,
)
from stack.evaluate.latency import device_name, measure
from stack.evaluate.prompts import Prompts
from stack.evaluate.reference import Reference, squares
from stack.evaluate.stored import BlockStore
from stack.evaluate.suites import draw
from stack.sample.generate import Sampler

log = logging.getLogger(__name__)

_EXTRACTED = 32
"""Pictures that a network sees at once: the same number always, for the same roundings."""
_ENOUGH = 8.0
"""Seconds of one kind of batch after which its speed is known."""
DISTANCES = frozenset({"frechet_distance", "recall", "precision"})
"""Measures that need real pictures."""


@dataclass(frozen=True)
class Tools:
    """The networks that a suite's measures look through; None for those that none needs."""

    distance: KnownExtractor | None = None
    similarity: KnownExtractor | None = None
    clip: Clip | None = None
    hps: Clip | None = None
    classifier: Classifier | None = None
    judge: Judge | None = None

    def fingerprints(self) -> dict[str, str]:
        """By use."""
        return {use: tool.fingerprint for use, tool in vars(self).items() if tool}

    def names(self) -> dict[str, str]:
        """By use, for people."""
        return {use: tool.name for use, tool in vars(self).items() if tool}


@dataclass(frozen=True)
class Plan:
    """What is drawn and looked at.

    Args:
        measures: keys of the figures. resolution: side that pictures are brought to, or None.
        block: prompts that a rank works on in one go. batch: pictures made at once, in a block.
        asked: what a judge should find in them.
    """

    prompts: Prompts
    measures: tuple[str, ...]
    tools: Tools
    seed: int
    per_prompt: int = 1
    resolution: int | None = None
    block: int = 32
    batch: int = 32
    asked: Asked | None = None

    def facts(self) -> dict[str, Any]:
        """All that decides the results besides the model."""
        return {
            "prompts": self.prompts.fingerprint,
            "tools": self.tools.fingerprints(),
            "seed": self.seed,
            "per_prompt": self.per_prompt,
            "resolution": self.resolution,
        }


def run_blocks(
    model: Sampler,
    plan: Plan,
    root: str | Path,
    facts: Mapping[str, Any],
    *,
    rank: int = 0,
    world_size: int = 1,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> BlockStore:
    """Make this rank's blocks that are not in ``root`` yet; returns where all of them are.

    Args:
        facts: what decides the model's pictures: weights, sampler, precision.
        on_pictures: called with the number of pictures made, or found, after every block.
    """
    store = BlockStore(root, {"model": dict(facts), **plan.facts()}, len(plan.prompts), plan.block)

    def make(block: range) -> dict[str, Tensor]:
        samples = [_look(model, plan, block, sample) for sample in range(plan.per_prompt)]
        return {name: torch.stack([one[name] for one in samples], 1) for name in samples[0]}

    def told(block: range) -> None:
        on_pictures(len(block) * plan.per_prompt)

    store.run(make, rank=rank, world_size=world_size, on_block=told)
    return store


def _look(model: Sampler, plan: Plan, block: range, sample: int) -> dict[str, Tensor]:
    """What every network says of one picture of each prompt of a block."""
    tools = plan.tools
    captions = plan.prompts.captions[block.start : block.stop]
    images = draw(model, plan.prompts, block, seed=plan.seed, batch=plan.batch, sample=sample)
    if plan.resolution:
        images = squares(images, plan.resolution)
    found: dict[str, Tensor] = {"index": plan.prompts.indices[block.start : block.stop]}
    if tools.distance:
        found["distance"] = extract(tools.distance, images, _EXTRACTED)
    if tools.similarity:
        found["similarity"] = extract(tools.similarity, images, _EXTRACTED)
    if tools.clip:
        found["clip_score"] = tools.clip.score(images, captions)
    if tools.hps:
        found["hps_score"] = hps_scores(tools.hps, images, captions)
    if tools.classifier and model.classes != 0:
        wanted = torch.tensor([int(caption) for caption in captions])
        found["class_accuracy"] = (tools.classifier.predict(images) == wanted).float()
    if tools.judge:
        found["judged"] = judged(tools.judge, images, _EXTRACTED)
    return found


def figures(
    rows: Mapping[str, Tensor], plan: Plan, reference: Reference | None, device: torch.device
) -> dict[str, Estimate]:
    """Every measure of a suite with its interval.

    Args:
        rows: what :func:`run_blocks` made, (prompts, per_prompt, ...). reference: real features,
            for distance, recall and precision. device: where these are taken.
    """
    found: dict[str, Estimate] = {}
    if reference and "distance" in rows:
        features, together = rows["distance"].flatten(0, 1), plan.per_prompt
        if "frechet_distance" in plan.measures:
            found["frechet_distance"] = frechet_estimate(
                features, reference.moments(device), together=together
            )
        shares = [name for name in ("recall", "precision") if name in plan.measures]
        if shares and reference.features is not None:
            both = reference.features.to(device), features.to(device)
            quality = manifold_estimates(*both, together=together)
            found |= {name: quality[name] for name in shares}
    if "in_batch_similarity" in plan.measures:
        found["in_batch_similarity"] = mean_estimate(group_similarities(rows["similarity"]))
    for name in ("clip_score", "class_accuracy", "hps_score"):
        if name in rows:
            found[name] = mean_estimate(rows[name].double().mean(1))
    if plan.asked:
        answers = plan.asked.figures(rows["judged"])
        found |= {name: one for name, one in answers.items() if name in plan.measures}
    if "hps_score" in plan.measures:
        found |= _by_group(rows["hps_score"].double().mean(1), plan.prompts)
    return found


def _by_group(scores: Tensor, prompts: Prompts) -> dict[str, Estimate]:
    """HPSv2 of each of its four styles, where the captions have them."""
    groups = [group for group in dict.fromkeys(prompts.groups) if group]
    return {
        f"hps_{group}": mean_estimate(
            scores[torch.tensor([one == group for one in prompts.groups])]
        )
        for group in groups
    }


def speed(model: Sampler, plan: Plan) -> dict[str, Any]:
    """How fast a model is, both warm and by the median of what `_ENOUGH` allows: seconds of one
    picture (batch 1), and pictures a second in batches as they were made; captions to pixels, on
    one device."""

    def rate(batch: int, repeats: int) -> float:
        conditions = [plan.prompts.captions[i % len(plan.prompts)] for i in range(batch)]

        def work() -> None:
            model.pictures(conditions, torch.arange(batch), plan.seed)

        taken = measure(work, batch, device=model.device, repeats=repeats, enough=_ENOUGH)
        return taken.images_per_second

    batch = min(plan.batch, len(plan.prompts))
    return {
        "nfe": model.nfe,
        "latency_seconds": 1 / rate(1, 5),
        "images_per_second": rate(batch, 3),
        "device": device_name(model.device),
    }
