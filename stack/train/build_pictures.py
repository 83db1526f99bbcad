"""Composition of the finished models: a run's teacher and student, which make pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from stack.checkpoint import folders
from stack.checkpoint.verify import checkpoint_of
from stack.config.edm import EdmTeacher
from stack.config.load import stored_recipe
from stack.config.schema import DistillRecipe, SDTeacher
from stack.nets.edm import EdmNetwork
from stack.nets.edm_files import edm_config, load_edm, save_edm
from stack.nets.hub import pipeline_folder
from stack.nets.sd15 import load_unet
from stack.sample.class_to_image import grid_classes
from stack.sample.export import save_pipeline
from stack.sample.generate import Sampler
from stack.train.build import device_of, prompts_of
from stack.train.build_samplers import edm_sampler, pipeline_sampler
from stack.train.build_stored import stored_weights
from stack.util.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def run_recipe(run: Path) -> DistillRecipe:
    """The recipe of a distillation run whose models make pictures.

    Raises:
        UserError: not such a run.
    """
    recipe = stored_recipe(run)
    if isinstance(recipe, DistillRecipe) and isinstance(recipe.teacher, SDTeacher | EdmTeacher):
        return recipe
    raise UserError(
        f"{run}/recipe.yaml: not a run of stack distill with a pipeline or an EDM network as its "
        "teacher"
    )


def teacher_and_student(run: Path) -> tuple[DistillRecipe, Sampler, Sampler]:
    """Both models of a run, in evaluation mode: pipelines in the precision that it trains in, EDM
    networks in float32, for their published figures are not of bfloat16 networks."""
    recipe = run_recipe(run)
    device, steps = device_of(recipe.device), recipe.evaluation.teacher_steps
    if isinstance(recipe.teacher, SDTeacher):
        folder, bf16 = _pipeline(recipe.teacher), recipe.precision == "bf16"
        pipeline = partial(pipeline_sampler, folder, device=device, bf16=bf16)
        unet = _filled(load_unet(folder), "unet.", run, recipe)
        return recipe, pipeline(steps=steps, guidance=recipe.guidance), pipeline(unet)
    assert isinstance(recipe.teacher, EdmTeacher)
    path, levels = recipe.teacher.path, recipe.teacher.levels
    edm = partial(edm_sampler, path, levels=levels, device=device, bf16=False)
    network = _filled(_edm(recipe.teacher), "model.", run, recipe)
    return recipe, edm(steps=steps), edm(network)


def conditions_of(recipe: DistillRecipe) -> list[str]:
    """What sample grids show: prompts, or each of the first ten classes four times."""
    if isinstance(recipe.teacher, EdmTeacher):
        return grid_classes(edm_config(recipe.teacher.path).label_dim)
    return prompts_of(recipe)


def save_student(
    run: Path, out: Path | None, *, fp16: bool, average: str | None
) -> tuple[Path, str]:
    """Write the student's folder (RUN/student unless ``out`` says another); the folder, and how
    it is used.

    Args:
        run: the run's folder, or one of its checkpoints.
        average: decay of the average to take, or "none" for the weights as trained; by default
            the recipe's first average, where there is one.
    """
    recipe = run_recipe(run)
    to = out or (folders.run_of(run) if folders.is_step(run) else run) / "student"
    if isinstance(recipe.teacher, SDTeacher):
        teacher = _pipeline(recipe.teacher)
        unet = _filled(load_unet(teacher), "unet.", run, recipe, average)
        return save_pipeline(unet.half() if fp16 else unet, teacher, to), (
            "load it with StableDiffusionPipeline.from_pretrained and sample with "
            "num_inference_steps=1, guidance_scale=1"
        )
    assert isinstance(recipe.teacher, EdmTeacher)
    network = _filled(_edm(recipe.teacher), "model.", run, recipe, average)
    return save_edm(network.half() if fp16 else network, to, steps=1), (
        "load it with stack.nets.edm_files.load_edm; EdmDenoiser makes a picture of noise of "
        "standard deviation 80 in one call at sigma 80"
    )


def _pipeline(teacher: SDTeacher) -> Path:
    return pipeline_folder(teacher.path, teacher.revision)


def _edm(teacher: EdmTeacher) -> EdmNetwork:
    return load_edm(teacher.path, augmentation=False)


def _filled(
    network: Network, prefix: str, run: Path, recipe: DistillRecipe, average: str | None = None
) -> Network:
    """A network with the student's weights, read lot by lot.

    Args:
        prefix: of its names in the checkpoint.

    Raises:
        UserError: there is no whole checkpoint, or no such average.
    """
    decays = {f"{decay:g}": f"ema_{decay:g}" for decay in recipe.averages}
    names = decays | {"none": "student"}
    chosen = average or next(iter(names))
    if chosen not in names:
        raise UserError(f"command line: --ema: {chosen}: the run has {', '.join(names)}")
    folder = checkpoint_of(run)
    weights, fixed = dict(network.named_parameters()), dict(network.named_buffers())
    with torch.no_grad():
        for name, value in stored_weights(folder, names[chosen]):
            name = name.removeprefix(prefix)
            if name not in fixed:
                weight = weights.pop(name)
                weight.copy_(value.view(weight.shape))
    if weights:
        raise UserError(f"{folder}: {names[chosen]}.{prefix}{min(weights)}: missing")
    return network
