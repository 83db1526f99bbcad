"""Composition of an evaluation of a run's own captions, whose attributes a judge names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from stack.config.schema import DistillRecipe, SDTeacher
from stack.data.storage import expand_variables
from stack.evaluate.attributes import (
    Labelled,
    asked,
    choose_prompts,
    halves_distance,
    read_labelled,
    real_reference,
    shared_judge,
)
from stack.evaluate.features import Judge, load_judge
from stack.evaluate.measure import Plan, Tools
from stack.evaluate.prompts import Prompts
from stack.evaluate.reference import Reference
from stack.parallel.collectives import Ranks
from stack.train.build import cache_of
from stack.train.build_suite import Opened
from stack.util.errors import UserError


@dataclass(frozen=True)
class Subject:
    """The data of a run and what judges pictures of their like."""

    folders: list[str]
    data: Labelled
    judge: Judge

    def reference(self) -> Reference:
        """The data, as what generated pictures are compared with."""
        return real_reference(self.judge, self.data, ", ".join(self.folders))

    def facts(self, seed: int) -> dict[str, object]:
        """What a result says of the judge and of the data."""
        return {
            "real_halves_frechet_distance": halves_distance(self.judge, self.data, seed),
            "judge": {"accuracy": self.judge.accuracy, "fingerprint": self.judge.fingerprint},
        }


def subject_of(opened: Opened, recipe: DistillRecipe, run: Path, ranks: Ranks) -> Subject:
    """The judge that is named, or the one that the runs of a folder share, which the first rank
    trains where there is none.

    Raises:
        UserError: the run draws classes, or its data have no attributes.
    """
    if not isinstance(recipe.teacher, SDTeacher):
        raise UserError(
            f"--suite: {opened.name}: {run} draws classes, and not captions; take cifar10, "
            "imagenet64 or the file of a suite"
        )
    if opened.prompts:
        raise UserError(f"--prompts: {opened.name}: its captions are those of the run's data")
    if opened.real:
        raise UserError(f"--reference: {opened.name}: its real pictures are the run's data")
    assert recipe.data
    data = read_labelled(recipe.data.folders, cache_of(recipe.data))
    named = _judge_file(opened, recipe)
    if named is None:

        def train() -> None:
            shared_judge(run.parent, data)

        ranks.by_first(train)
    judge = load_judge(named or run.parent / "judge.safetensors")
    return Subject(recipe.data.folders, data, judge)


def _judge_file(opened: Opened, recipe: DistillRecipe) -> Path | None:
    """Where a judge is named; a folder is a classifier, for suites of classes."""
    if told := opened.networks.classifier:
        path = Path(expand_variables(told))
        if not path.is_dir():
            return path
    return Path(recipe.evaluation.judge) if recipe.evaluation.judge else None


def labelled_plan(
    opened: Opened,
    subject: Subject,
    recipe: DistillRecipe,
    measures: tuple[str, ...],
    *,
    seed: int,
    batch: int,
    subset: int | None,
) -> Plan:
    """Captions of the data, as large a share of them vague as the recipe says."""
    wanted, suite = recipe.evaluation, opened.suite
    samples = subset or wanted.samples
    vague = wanted.ambiguous * samples // wanted.samples
    rows = choose_prompts(subject.data, samples, vague, seed)
    captions = [subject.data.captions[row] for row in rows.tolist()]
    return Plan(
        Prompts(captions, torch.arange(samples), [""] * samples),
        measures,
        Tools(distance=subject.judge, judge=subject.judge),
        seed,
        block=suite.block,
        batch=min(batch, suite.block),
        asked=asked(subject.data, subject.judge, rows),
    )
