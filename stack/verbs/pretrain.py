"""``stack pretrain``: a text-to-image teacher in Stable Diffusion's layout, or an EDM network."""

from __future__ import annotations

from pathlib import Path

from stack.config.edm import EdmPretrainRecipe
from stack.config.schema import PretrainRecipe
from stack.parallel.collectives import Ranks, ranks_of
from stack.train.build import Job
from stack.train.build_edm import build_edm_teacher
from stack.train.build_run import Start, open_run, trainer_of
from stack.train.build_teacher import build_unet, build_vae, save_teacher


def pretrain_edm(recipe: EdmPretrainRecipe, how: Start) -> str | None:
    """Train an EDM network; its folder goes to OUT/teacher.

    Returns: the signal's name if one asked to stop (the state is then saved).
    """
    with ranks_of(recipe.parallel.backend, timeout=recipe.parallel.timeout) as ranks:
        job, save = build_edm_teacher(recipe, ranks)
        folder = open_run(recipe, ranks, how)
        reason = trainer_of(recipe, job, folder, ranks).fit()
        if reason:
            return reason
        ranks.by_first(lambda: save(folder / "teacher"))
    return None


def pretrain(recipe: PretrainRecipe, how: Start) -> str | None:
    """Train autoencoder, then UNet and text encoder; the pipeline goes to OUT/teacher.

    Returns: the signal's name if one asked to stop (the state is then saved).
    """
    with ranks_of(recipe.parallel.backend, timeout=recipe.parallel.timeout) as ranks:
        vae_job, vae = build_vae(recipe, ranks)  # First: bad data are found before any writing.
        folder = open_run(recipe, ranks, how)
        reason = _fit(folder / "vae", recipe, vae_job, ranks)
        if reason:
            return reason
        unet_job, parts = build_unet(recipe, vae, ranks)
        reason = _fit(folder / "unet", recipe, unet_job, ranks)
        if reason:
            return reason
        if ranks.first:
            save_teacher(parts, folder / "teacher")
        ranks.barrier()
    return None


def _fit(folder: Path, recipe: PretrainRecipe, job: Job, ranks: Ranks) -> str | None:
    return trainer_of(recipe, job, folder, ranks).fit()
