"""The verbs that measure pictures, and that train what measures them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stack.arguments.common import json_option, on_ranks, positive
from stack.util.errors import UserError

NETWORKS = {
    "inception": "file or URL of Inception-v3 (TorchScript), for Frechet distance and recall",
    "clip": "CLIP's folder, for CLIP score",
    "dino": "DINO's folder, for in-batch similarity (default: CLIP)",
    "hps": "file of HPSv2's weights",
    "hps-tokenizer": "folder with CLIP's vocabulary for HPSv2 (default: CLIP)",
    "classifier": "folder that stack train-judge made, or the file of a judge of digits",
}
MEASURES = (
    "frechet_distance",
    "recall",
    "precision",
    "clip_score",
    "in_batch_similarity",
    "hps_score",
    "class_accuracy",
    "caption_accuracy",
    "mode_tv",
)


def add_evaluate(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    verb.add_argument(
        "run",
        metavar="RUN|PIPELINE",
        help="run folder, pipeline folder, folder of an EDM network, or hub id with --revision",
    )
    verb.add_argument(
        "--suite",
        metavar="NAME|FILE",
        help="coco30k, coco_similarity, parti, hpsv2, cifar10, imagenet64, digits, or the file of "
        "one (default: the recipe's, which is digits unless it says another)",
    )
    verb.add_argument("--subset", type=positive, metavar="N", help="that many prompts only")
    verb.add_argument("--samples", type=positive, metavar="N", help="the same as --subset")
    verb.add_argument("--seed", type=int, default=0, help="of prompts and noise (default 0)")
    _add_sampling(verb)
    _add_parts(verb)
    verb.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of results (default RUN/evaluations)"
    )
    verb.add_argument("--processes", type=positive, help="ranks (default: recipe's, or 1)")
    json_option(verb)
    return _evaluate


def _add_sampling(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("how pictures are made")
    group.add_argument(
        "--teacher",
        nargs="+",
        choices=("ode", "sde", "none"),
        default=["ode"],
        help="rows of the teacher: ODE (DDIM, Heun), SDE (ancestral, stochastic Heun), or no row",
    )
    group.add_argument("--steps", type=positive, help="of the teacher, or of the pipeline")
    group.add_argument("--guidance", type=float, help="the same's guidance weight")
    group.add_argument("--batch", type=positive, help="pictures made at once")
    group.add_argument("--revision", help="commit of a hub id")
    group.add_argument("--device", default="auto", help="of a pipeline (default auto)")
    group.add_argument("--bf16", action="store_true", help="a pipeline under bf16 autocast")


def _add_parts(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("what is looked at, and through what")
    group.add_argument("--prompts", help="captions file (default: recipe's)")
    group.add_argument(
        "--reference", help="real pictures: their folder, shards, or a file of their statistics"
    )
    group.add_argument(
        "--resolution", type=positive, help="side that generated and real pictures are brought to"
    )
    group.add_argument(
        "--measure",
        action="append",
        choices=MEASURES,
        metavar="NAME",
        help=f"one of the suite's only; repeatable: {', '.join(MEASURES)}",
    )
    for name, what in NETWORKS.items():
        group.add_argument(f"--{name}", metavar="PATH", help=what)


def _evaluate(args: argparse.Namespace) -> int:
    is_run = (Path(args.run) / "recipe.yaml").is_file()
    processes, backend, timeout, wanted, device = 1, "none", 600.0, None, args.device
    if is_run:
        from stack.config.load import stored_recipe

        recipe: Any = stored_recipe(args.run)
        processes, backend = recipe.parallel.processes, recipe.parallel.backend
        timeout, device = recipe.parallel.timeout, recipe.device
        if recipe.job != "distill":
            raise UserError(
                f"{args.run}: job: {recipe.job}: a run of stack pretrain; evaluate the teacher in "
                f"it: {Path(args.run) / 'teacher'} --suite NAME"
            )
        wanted = recipe.evaluation
    suite = args.suite or (wanted.suite if wanted else None)
    if suite is None:
        raise UserError(f"{args.run}: not a run folder; a pipeline needs --suite")
    out = args.out or _place(args.run, is_run, args.revision)
    processes = args.processes or processes

    def work() -> int:
        from stack.config.evaluation import Evaluation
        from stack.parallel.collectives import ranks_of
        from stack.verbs.evaluate_suite import PATIENCE, Options, evaluate_suite

        options = Options(**_options(args), suite=suite, out=out)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        kind = backend if backend != "none" or not several else "ddp"
        with ranks_of(kind, timeout=max(timeout, PATIENCE)) as ranks:
            evaluate_suite(options, wanted or Evaluation(), device, ranks)
        return 0

    return on_ranks(processes, args, work)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    networks = [name.replace("-", "_") for name in NETWORKS]
    return {
        "target": args.run,
        "seed": args.seed,
        "subset": args.subset or args.samples,
        "teachers": tuple(kind for kind in args.teacher if kind != "none"),
        "steps": args.steps,
        "guidance": args.guidance,
        "batch": args.batch,
        "resolution": args.resolution,
        "measures": tuple(args.measure or ()),
        "revision": args.revision,
        "device": args.device,
        "bf16": args.bf16,
        "prompts": args.prompts,
        "reference": args.reference,
        "networks": {name: getattr(args, name) for name in networks if getattr(args, name)},
        "json_file": args.json,
    }


def _place(target: str, is_run: bool, revision: str | None) -> Path:
    """Where results go: of a run into its folder, of a pipeline beside its own folder, which stays
    as it is, of what is in the hub under its whole name. No two models share a place."""
    if is_run:
        return Path(target) / "evaluations"
    folder = Path(target)
    if folder.exists():
        named = folder if folder.name not in ("", "..") else folder.resolve()
        return named.parent / "evaluations" / named.name
    return Path("runs") / "evaluations" / (f"{target}@{revision}" if revision else target)


def add_train_judge(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    verb.add_argument("shards", help="folder of shards with pictures and cls")
    verb.add_argument("out", type=Path, help="folder to write")
    verb.add_argument(
        "--test", metavar="SHARDS", help="pictures to test on (default: a tenth of the others)"
    )
    verb.add_argument("--epochs", type=positive, default=14, help="(default %(default)s)")
    verb.add_argument("--seed", type=int, default=0, help="(default 0)")
    verb.add_argument(
        "--no-flips", action="store_true", help="a mirrored picture is of no class (digits, text)"
    )
    verb.add_argument("--device", default="auto", help="(default auto)")
    json_option(verb)

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.train_judge import train_judge

        train_judge(
            args.shards,
            args.out,
            test=args.test,
            epochs=args.epochs,
            seed=args.seed,
            flips=not args.no_flips,
            device=args.device,
            json_file=args.json,
        )
        return 0

    return run
