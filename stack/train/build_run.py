"""Composition of a run: its folder, whether it may be written into, and its trainer."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from stack.config.load import dump_recipe, identity_changes, load_recipe
from stack.config.schema import DistillRecipe, PretrainRecipe, Recipe
from stack.parallel.collectives import ALONE, Ranks
from stack.train.build import Job
from stack.train.trainer import Trainer
from stack.util.errors import UserError
from stack.util.files import sha256_file, write_atomic


def open_run(
    recipe: Recipe, ranks: Ranks = ALONE, *, resume: bool = False, overwrite: bool = False
) -> Path:
    """The recipe's run folder, ready to train in; a new one holds its resolved recipe.yaml.

    In a run that goes on, the trainer writes recipe.yaml, once the state has loaded.

    Args:
        resume: go on with the run in the folder, or start one in an empty folder.
        overwrite: remove what is there first.

    Raises:
        UserError: the folder holds something and neither was asked for; or the run in it was
            made with another recipe.
    """
    folder = Path(recipe.out)
    ranks.by_first(lambda: _claim(recipe, folder, resume=resume, overwrite=overwrite))
    return folder


def _claim(recipe: Recipe, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """What :func:`open_run` says, by the first rank alone."""
    stored = folder / "recipe.yaml"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, not a run folder; choose another out=")
    if overwrite and folder.exists():
        if not stored.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: not a run folder (no recipe.yaml); remove it yourself")
        shutil.rmtree(folder)
    if folder.exists() and any(folder.iterdir()):
        if not stored.exists():
            raise UserError(f"{folder}: holds something that is not a run; choose another out=")
        if not resume:
            raise UserError(
                f"{folder}: holds a run already; give --resume to go on with it, --overwrite to "
                "remove it, or out=FOLDER"
            )
        check_same(load_recipe(stored), recipe, stored)
    else:
        write_atomic(stored, dump_recipe(recipe))


def trainer_of(
    recipe: DistillRecipe | PretrainRecipe, job: Job, folder: Path, ranks: Ranks = ALONE
) -> Trainer:
    """The training loop of one job in ``folder``, the recipe's run folder or one in it."""
    return Trainer(
        folder,
        job.task,
        job.source,
        recipe_file=Path(recipe.out) / "recipe.yaml",
        recipe_text=dump_recipe(recipe),
        code_hash=code_hash(),
        log_every=recipe.log.every,
        sample_every=recipe.log.sample_every,
        save_every=recipe.checkpoint.every,
        keep_last=recipe.checkpoint.keep_last,
        bad_samples=recipe.data.bad_samples if recipe.data else 0.0,
        ranks=ranks,
    )


def check_same(before: Recipe, now: Recipe, stored: Path) -> None:
    """Raise a UserError if a field of the run's identity has changed."""
    if type(before) is not type(now):
        raise UserError(f"{stored}: job: the run in this folder is of another job")
    for field, was, value in identity_changes(before, now):
        raise UserError(
            f"{stored}: {field}: the run was started with {was!r}, now {value!r}; resume with the "
            "same recipe, or start another run with out=FOLDER"
        )


def code_hash() -> str:
    """SHA-256 over this package's source, stored with every checkpoint."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)} {sha256_file(file)}\n".encode())
    return digest.hexdigest()
