"""Arguments that several verbs take, and how their work is started."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stack.util.errors import UserError

OVERRIDES = "overrides of recipe fields, such as optim.student.lr=5e-6 seed=1"


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def on_disk(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError("a URL; give a folder on a disk")
    return Path(text)


def run_verb(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", type=Path, help="run folder that stack distill made")


def json_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")


def load(args: argparse.Namespace, *jobs: str) -> Any:
    """The recipe, which must be for one of ``jobs`` if any are given."""
    from stack.config.load import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    if jobs and recipe.job not in jobs:
        verb = recipe.job.partition("_")[0]
        raise UserError(
            f"{args.recipe}: job: the recipe is for stack {verb}, not for stack {args.verb}"
        )
    return recipe


def on_ranks(processes: int, args: argparse.Namespace, work: Callable[[], int]) -> int:
    """Do the work if this process is a rank or the only one; else start the ranks."""
    if processes == 1 or "WORLD_SIZE" in os.environ:
        return work()
    from stack.parallel.launch import launch

    return launch(processes, [sys.executable, "-m", "stack", *args.argv])
