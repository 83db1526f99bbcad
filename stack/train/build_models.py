"""Composition of what is evaluated: the models of a run, or of a folder that holds one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stack.config.schema import DistillRecipe
from stack.sample.generate import Kind, Sampler
from stack.train.build_pictures import teacher_and_student
from stack.train.build_samplers import folder_sampler


@dataclass(frozen=True)
class Model:
    """A row of the results, by its key there."""

    name: str
    sampler: Sampler


def models_of_run(
    run: Path, kinds: Sequence[Kind], *, steps: int | None, guidance: float | None
) -> tuple[DistillRecipe, list[Model]]:
    """The teacher by each kind of sampler, and the student.

    Args:
        steps, guidance: of the teacher; the recipe's if None.

    Raises:
        UserError: not a run with pictures, or its teacher has no such sampler.
    """
    recipe, teacher, student = teacher_and_student(run)
    changed = teacher.with_settings(steps=steps, guidance=guidance)
    return recipe, [*_teachers(changed, kinds), Model("student", student)]


def models_of_folder(
    path: str,
    revision: str | None,
    kinds: Sequence[Kind],
    *,
    steps: int | None,
    guidance: float | None,
    device: torch.device,
    bf16: bool,
) -> list[Model]:
    """The model of a pipeline's folder or hub id, or of an EDM network's folder: a student where
    it takes one step, else a teacher by each kind of sampler.

    Args:
        steps: if None, 1 for what stack export wrote; else 25, of an EDM network 18 (ADM: 40).
        guidance: 1 if None.

    Raises:
        UserError: neither of these.
    """
    sampler = folder_sampler(path, revision, device=device, bf16=bf16)
    changed = sampler.with_settings(steps=steps, guidance=guidance)
    return [Model("student", changed)] if changed.steps == 1 else _teachers(changed, kinds)


def _teachers(sampler: Sampler, kinds: Sequence[Kind]) -> list[Model]:
    """The first one is the teacher."""
    return [
        Model(f"teacher_{kind}" if number else "teacher", sampler.with_settings(kind=kind))
        for number, kind in enumerate(dict.fromkeys(kinds))
    ]
