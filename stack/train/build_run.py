"""Composition of a run: its folder, whether it may be written into, and its trainer."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from stack.checkpoint.commit import Keep
from stack.checkpoint.verify import checkpoint_of
from stack.config.load import dump_recipe, identity_changes, load_recipe
from stack.config.schema import AnyRecipe, DistillRecipe, Recipe
from stack.evaluate.latency import device_name
from stack.parallel.collectives import ALONE, Ranks
from stack.train.build import Job, device_of
from stack.train.provenance import provenance
from stack.train.state import RunState
from stack.train.trainer import Trainer
from stack.util.code import code_hash
from stack.util.errors import UserError
from stack.util.files import read_json


@dataclass(frozen=True)
class Start:
    """How a run is to begin.

    Args:
        resume: go on with the run in the folder, or start one in an empty folder.
        overwrite: remove what is there first.
        step: with resume, the checkpoint to go on from instead of the newest.
        fork: a run's folder, or one of its checkpoints, whose whole state a new run begins with.
    """

    resume: bool = False
    overwrite: bool = False
    step: int | None = None
    fork: Path | None = None


_NO_RUN = re.compile(r"jobs\.jsonl|logs|slurm-.*\.out|\.(doctor-|jobs\.|recipe\.yaml\.|nfs).*")
"""What Slurm's jobs, a start killed in its first writing, and NFS leave in a folder before the run
is there too."""


def open_run(recipe: Recipe, ranks: Ranks = ALONE, how: Start = Start()) -> Path:
    """The recipe's run folder, which may be written into; the trainer does, once it has its state.

    Raises:
        UserError: the folder holds something and neither was asked for; or the run in it was
            made with another recipe.
    """
    folder = Path(recipe.out)
    ranks.by_first(lambda: _claim(recipe, folder, how))
    return folder


def _claim(recipe: Recipe, folder: Path, how: Start) -> None:
    """What :func:`open_run` says, by the first rank alone."""
    stored = folder / "recipe.yaml"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, not a run folder; choose another out=")
    if how.overwrite and folder.exists():
        if not stored.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: not a run folder (no recipe.yaml); remove it yourself")
        _spare_sources(recipe, folder, how)
        shutil.rmtree(folder)
    if stored.exists():
        if not how.resume:
            raise UserError(
                f"{folder}: holds a run already; give --resume to go on with it, --overwrite to "
                "remove it, or out=FOLDER"
            )
        check_same(load_recipe(stored), recipe, stored)
    elif folder.exists() and not all(_NO_RUN.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(f"{folder}: holds something that is not a run; choose another out=")


def _spare_sources(recipe: Recipe, folder: Path, how: Start) -> None:
    """A run that begins with another's state must not remove it first."""
    warm = recipe.init_from if isinstance(recipe, DistillRecipe) else None
    for option, source in (("command line: --fork", how.fork), ("init_from", warm)):
        if source and Path(source).resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{option}: {source}: is in {folder}, which --overwrite would remove; name "
                "another out=FOLDER"
            )


def trainer_of(
    recipe: AnyRecipe,
    job: Job,
    folder: Path,
    ranks: Ranks = ALONE,
    how: Start = Start(),
) -> Trainer:
    """The training loop of one job in ``folder``, the recipe's run folder or one in it."""
    saving, code, backend = recipe.checkpoint, code_hash(), recipe.parallel.backend
    state = RunState(
        folder / "checkpoints",
        job.task,
        job.source,
        recipe=dump_recipe(recipe),
        code_hash=code,
        backend=backend,
        keep=Keep(saving.keep_last, saving.keep_every, saving.keep_best),
        background=saving.background,
        start=how.fork,
        step=how.step,
        ranks=ranks,
    )
    devices = ranks.gather(device_name(device_of(recipe.device)))
    return Trainer(
        folder,
        job.task,
        job.source,
        state,
        root=Path(recipe.out),
        log_every=recipe.log.every,
        sample_every=recipe.log.sample_every,
        evaluate_every=recipe.evaluation.quick_every if recipe.job == "distill" else 0,
        save_every=saving.every,
        bad_samples=recipe.data.bad_samples if recipe.data else 0.0,
        watchdog=recipe.parallel.watchdog,
        provenance=provenance(code_hash=code, seed=recipe.seed, backend=backend, devices=devices),
        ranks=ranks,
    )


def settle_fork(recipe: Recipe, how: Start, ranks: Ranks) -> Start:
    """The same start with the checkpoint it forks from, looked for before anything is written;
    a fork that goes on without one of its own yet finds it noted in its folder."""
    noted = Path(recipe.out) / "fork.json"
    source = how.fork
    if source is None and how.resume and noted.is_file():
        source = Path(read_json(noted)["checkpoint"])
    source = ranks.gather(source)[0]
    if source is None:
        return how
    folder = checkpoint_of(source, "command line: --fork: ", ranks)
    if how.fork:
        ranks.by_first(lambda: _tell_changes(folder, recipe))
    return replace(how, fork=folder)


def _tell_changes(folder: Path, recipe: Recipe) -> None:
    before = load_recipe(folder / "recipe.yaml")
    print(f"forking {folder}")
    for field, was, now in identity_changes(before, recipe):
        print(f"  {field}: {was!r} there, {now!r} here")


def check_same(before: Recipe, now: Recipe, stored: Path) -> None:
    """Raise a UserError if a field of the run's identity has changed."""
    if type(before) is not type(now):
        raise UserError(f"{stored}: job: the run in this folder is of another job")
    for field, was, value in identity_changes(before, now):
        raise UserError(
            f"{stored}: {field}: the run was started with {was!r}, now {value!r}; resume with the "
            "same recipe, or start another run with out=FOLDER"
        )
