"""The verbs that train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stack.arguments.common import OVERRIDES, load, on_ranks, positive
from stack.util import exits
from stack.util.errors import UserError


def add_pretrain(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    def work(recipe: Any, how: Any) -> str | None:
        from stack.verbs.pretrain import pretrain, pretrain_edm

        return (pretrain_edm if recipe.job == "pretrain_edm" else pretrain)(recipe, how)

    return add_training(verb, ("pretrain", "pretrain_edm"), work)


def add_distill(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    def work(recipe: Any, how: Any) -> str | None:
        from stack.verbs.distill import distill

        return distill(recipe, how)

    verb.add_argument(
        "--step",
        type=positive,
        help="with --resume: go on from this checkpoint; later ones are put aside, not removed",
    )
    verb.add_argument(
        "--fork",
        type=Path,
        metavar="RUN",
        help="begin a new run with the whole state of another one's newest checkpoint, or of the "
        "one named RUN/checkpoints/step-N; name its folder with out=FOLDER",
    )
    return add_training(verb, ("distill",), work)


def add_training(
    verb: argparse.ArgumentParser, jobs: Sequence[str], work: Callable[[Any, Any], str | None]
) -> Callable[[argparse.Namespace], int]:
    _training_options(verb)
    verb.set_defaults(step=None, fork=None)

    def run(args: argparse.Namespace) -> int:
        if args.step and not args.resume:
            raise UserError(f"command line: --step: {args.step}: goes with --resume")
        recipe = load(args, *jobs)

        def train() -> int:
            from stack.train.build_run import Start

            how = Start(args.resume, args.overwrite, args.step, args.fork)
            return _stopped(work(recipe, how))

        return on_ranks(recipe.parallel.processes, args, train)

    return run


def _training_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", type=Path, help="recipe file (YAML)")
    verb.add_argument("overrides", nargs="*", metavar="field=value", help=OVERRIDES)
    held = verb.add_mutually_exclusive_group()
    held.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in the output folder from its newest whole checkpoint; "
        "starts one if the folder is empty",
    )
    held.add_argument(
        "--overwrite", action="store_true", help="remove the run in the output folder first"
    )


def _stopped(reason: str | None) -> int:
    if reason is None:
        return 0
    print(f"stopped by {reason} with the state saved; --resume goes on", file=sys.stderr)
    return exits.STOPPED
