"""Composition of what is evaluated: the models of a run, or of a folder that holds one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stack.config.schema import DistillRecipe
from stack.diffusion.karras import KarrasSchedule
from stack.evaluate.features import weights_fingerprint
from stack.nets.edm import EdmDenoiser
from stack.nets.edm_files import WEIGHTS, load_edm
from stack.nets.hub import pipeline_folder
from stack.nets.sd15 import SDDenoiser, load_schedule, load_unet
from stack.nets.text import load_text
from stack.nets.vae import load_vae
from stack.sample.class_to_image import ClassToImage
from stack.sample.export import ONE_STEP
from stack.sample.generate import Sampler, TextToImage
from stack.train.build_pictures import teacher_and_student
from stack.util.errors import UserError
from stack.util.files import read_json

Kind = Literal["ode", "sde"]
"""A teacher's sampler: DDIM or Heun; or ancestral."""

_STEPS = {"pipeline": 25, "edm": 18}
"""Of a teacher that is given as a folder, unless the command line says another number."""


@dataclass(frozen=True)
class Model:
    """A row of the results.

    Args:
        name: its key there. facts: what decides its pictures. sampler: for people.
    """

    name: str
    sampler: Sampler
    facts: dict[str, Any]

    @property
    def told(self) -> str:
        """How it samples, for people."""
        model = self.sampler
        if isinstance(model, TextToImage):
            kind = "DDIM" if model.sampler == "ddim" else "ancestral"
            return f"{kind}, {model.steps} steps, guidance {model.guidance:g}"
        assert isinstance(model, ClassToImage)
        return f"Heun, {model.steps} steps"


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
    rows = _teachers(teacher, kinds, steps, guidance) | {"student": student}
    return recipe, [Model(name, one, facts_of(one, recipe.precision)) for name, one in rows.items()]


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
        steps: 1 if None for a pipeline that stack export wrote; of others, 25 (EDM: 18).
        guidance: 1 if None.

    Raises:
        UserError: neither of these.
    """
    model: TextToImage | ClassToImage
    if (Path(path) / WEIGHTS).is_file():
        model = _edm(path, bf16)
    else:
        model = _pipeline(path, revision, bf16)
    for item in fields(model):
        if isinstance(part := getattr(model, item.name), nn.Module):
            part.to(device).requires_grad_(False).eval()
    count = steps or model.steps
    if count == 1:
        rows: dict[str, Sampler] = {"student": _changed(model, 1, guidance)}
    else:
        rows = _teachers(model, kinds, count, guidance)
    precision = "bf16" if bf16 else "fp32"
    return [Model(name, one, facts_of(one, precision)) for name, one in rows.items()]


def facts_of(model: Sampler, precision: str) -> dict[str, Any]:
    """All that decides a model's pictures besides condition, index and seed: weights by their
    hash, settings as they are."""
    assert isinstance(model, TextToImage | ClassToImage)
    schedule = model.denoiser.schedule
    levels = schedule.sigma(torch.arange(schedule.steps)).numpy().data
    facts: dict[str, Any] = {
        "precision": precision,
        "schedule": hashlib.sha256(levels).hexdigest(),
    }
    if isinstance(model, TextToImage):
        facts["parameterization"] = model.denoiser.parameterization
    for item in fields(model):
        value = getattr(model, item.name)
        facts[item.name] = weights_fingerprint(value) if isinstance(value, nn.Module) else value
    return facts


def _teachers(
    model: Sampler, kinds: Sequence[Kind], steps: int | None, guidance: float | None
) -> dict[str, Sampler]:
    """By their keys in the results: the first one is the teacher."""
    found: dict[str, Sampler] = {}
    for kind in dict.fromkeys(kinds):
        one = _changed(model, steps, guidance)
        if kind == "sde":
            if not isinstance(one, TextToImage):
                raise UserError("--teacher: sde: an EDM network has no such sampler here; take ode")
            one = replace(one, sampler="ancestral")
        found[f"teacher_{kind}" if found else "teacher"] = one
    return found


def _changed(model: Sampler, steps: int | None, guidance: float | None) -> Sampler:
    """A model with other settings, where they are given."""
    if isinstance(model, TextToImage):
        weight = model.guidance if guidance is None else guidance
        return replace(model, steps=steps or model.steps, guidance=weight)
    assert isinstance(model, ClassToImage)
    if guidance not in (None, 1):
        raise UserError(f"--guidance: {guidance:g}: an EDM network has none")
    return replace(model, steps=steps or model.steps)


def _edm(path: str, bf16: bool) -> ClassToImage:
    network = load_edm(path, augmentation=False)
    return ClassToImage(EdmDenoiser(network, KarrasSchedule(), bf16=bf16), _STEPS["edm"])


def _pipeline(path: str, revision: str | None, bf16: bool) -> TextToImage:
    folder = pipeline_folder(path, revision)
    schedule, parameterization = load_schedule(folder)
    denoiser = SDDenoiser(load_unet(folder), schedule, parameterization, bf16=bf16)
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    student = config.get("_class_name") == "DDIMScheduler" and ONE_STEP.items() <= config.items()
    steps = 1 if student else _STEPS["pipeline"]
    return TextToImage(denoiser, load_text(folder), load_vae(folder), steps)
