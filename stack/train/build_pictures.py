"""Composition of the finished models: a run's teacher and student as text-to-image models."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from stack.checkpoint.verify import checkpoint_of
from stack.config.load import stored_recipe
from stack.config.schema import DistillRecipe, SDTeacher
from stack.nets.hub import pipeline_folder
from stack.nets.sd15 import SDDenoiser, load_schedule, load_unet
from stack.nets.text import load_text
from stack.nets.vae import load_vae
from stack.sample.generate import TextToImage
from stack.train.build import device_of
from stack.train.build_stored import stored_weights
from stack.util.errors import UserError


def run_recipe(run: Path) -> tuple[DistillRecipe, Path]:
    """The recipe of a distillation run of a pipeline, and the pipeline's folder.

    Raises:
        UserError: not such a run.
    """
    recipe = stored_recipe(run)
    if not isinstance(recipe, DistillRecipe) or not isinstance(recipe.teacher, SDTeacher):
        raise UserError(
            f"{run}/recipe.yaml: not a run of stack distill with a pipeline as its teacher"
        )
    return recipe, pipeline_folder(recipe.teacher.path, recipe.teacher.revision)


def student_unet(
    run: Path, recipe: DistillRecipe, teacher: Path, average: str | None = None
) -> UNet2DConditionModel:
    """The student that is evaluated, sampled and exported, read one parameter at a time.

    Args:
        run: the run's folder, or one of its checkpoints.
        average: decay of the average to take, or "none" for the weights as trained; by default
            the recipe's first average, where there is one.

    Raises:
        UserError: there is no whole checkpoint, or no such average.
    """
    decays = {f"{decay:g}": f"ema_{decay:g}" for decay in recipe.averages}
    names = decays | {"none": "student"}
    chosen = average or next(iter(names))
    if chosen not in names:
        raise UserError(f"command line: --ema: {chosen}: the run has {', '.join(names)}")
    folder = checkpoint_of(run)
    unet = load_unet(teacher)
    missing = set(dict(unet.named_parameters()))
    with torch.no_grad():
        for name, value in stored_weights(folder, names[chosen]):
            name = name.removeprefix("unet.")
            weight = unet.get_parameter(name)
            weight.copy_(value.view(weight.shape))
            missing.remove(name)
    if missing:
        raise UserError(f"{folder}: {names[chosen]}.unet.{min(missing)}: missing")
    return unet


def teacher_and_student(run: Path) -> tuple[DistillRecipe, TextToImage, TextToImage]:
    """Both models of a run, with the same text encoder and autoencoder, in evaluation mode."""
    recipe, folder = run_recipe(run)
    device = device_of(recipe.device)
    schedule, parameterization = load_schedule(folder)
    text, vae = load_text(folder).to(device), load_vae(folder).to(device)
    teacher, student = (
        SDDenoiser(unet, schedule, parameterization, bf16=recipe.precision == "bf16")
        .to(device)
        .requires_grad_(False)
        .eval()
        for unet in (load_unet(folder), student_unet(run, recipe, folder))
    )
    steps = recipe.evaluation.teacher_steps
    return (
        recipe,
        TextToImage(teacher, text, vae, steps=steps, guidance=recipe.guidance),
        TextToImage(student, text, vae),
    )
