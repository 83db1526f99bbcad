"""``stack pretrain``: a text-to-image teacher in Stable Diffusion's layout."""

from __future__ import annotations

from pathlib import Path

from stack.config.schema import PretrainRecipe
from stack.train.build import Job
from stack.train.build_run import open_run, trainer_of
from stack.train.build_teacher import build_unet, build_vae, save_teacher


def pretrain(recipe: PretrainRecipe, *, resume: bool, overwrite: bool) -> str | None:
    """Train autoencoder, then UNet and text encoder; the pipeline goes to OUT/teacher.

    Returns: the signal's name if one asked to stop (the state is then saved).
    """
    vae_job, vae = build_vae(recipe)  # First: bad data are found before anything is written.
    folder = open_run(recipe, resume=resume, overwrite=overwrite)
    reason = _fit(folder / "vae", recipe, vae_job)
    if reason:
        return reason
    unet_job, parts = build_unet(recipe, vae)
    reason = _fit(folder / "unet", recipe, unet_job)
    if reason:
        return reason
    save_teacher(parts, folder / "teacher")
    return None


def _fit(folder: Path, recipe: PretrainRecipe, job: Job) -> str | None:
    folder.mkdir(exist_ok=True)
    return trainer_of(recipe, job, folder).fit()
