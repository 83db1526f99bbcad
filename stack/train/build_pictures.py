"""Composition of the finished models: a run's teacher and student as text-to-image models."""

from __future__ import annotations

from pathlib import Path

from diffusers import UNet2DConditionModel

from stack.checkpoint import read, verify
from stack.config.load import stored_recipe
from stack.config.schema import DistillRecipe, SDTeacher
from stack.nets.sd15 import SDDenoiser, load_schedule, load_unet
from stack.nets.text import load_text
from stack.nets.vae import load_vae
from stack.sample.generate import TextToImage
from stack.train.build import device_of
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
    return recipe, Path(recipe.teacher.path)


def student_unet(run: Path, recipe: DistillRecipe, teacher: Path) -> UNet2DConditionModel:
    """The student that is evaluated, sampled and exported: the average, where there is one.

    Raises:
        UserError: the run has no whole checkpoint yet.
    """
    folder, skipped = verify.latest(run / "checkpoints")
    for reason in skipped:
        print(f"skipped checkpoint {reason}")
    if folder is None:
        raise UserError(f"{run}: checkpoints/: none yet; run stack distill first")
    name = "ema" if recipe.ema else "student"
    unet = load_unet(teacher)
    unet.load_state_dict(read.read_tensors(folder, f"{name}.unet."))
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
