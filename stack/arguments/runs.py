"""The verbs that look at a run or make something of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from stack.arguments.common import json_option, positive, run_verb


def add_sample(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    run_verb(verb)
    verb.add_argument(
        "--prompt", action="append", help="a prompt; repeat for more (the recipe's by default)"
    )
    verb.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    verb.add_argument("--out", type=Path, help="PNG file (default RUN/samples/grid.png)")

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.sample import sample

        sample(args.run, prompts=args.prompt, seed=args.seed, out=args.out)
        return 0

    return run


def add_export(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    run_verb(verb)
    verb.add_argument("--out", type=Path, help="folder (default RUN/student)")
    verb.add_argument("--fp16", action="store_true", help="store weights in half precision")
    verb.add_argument(
        "--ema",
        metavar="NAME",
        help="the average to write, by its decay, or none for the weights as trained (default: "
        "the recipe's first average)",
    )

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.export import export

        export(args.run, out=args.out, fp16=args.fp16, average=args.ema)
        return 0

    return run


def add_report(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    verb.add_argument(
        "--out",
        type=Path,
        help="HTML file (default RUN/report.html, and of several comparison.html beside them)",
    )

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.report import report

        report(args.runs, args.out)
        return 0

    return run


def add_checkpoint(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parts = verb.add_subparsers(dest="part", metavar="PART", required=True)
    for name, what in (("ls", "list them"), ("verify", "hash every file and compare")):
        part = parts.add_parser(name, help=what)
        run_verb(part)
        json_option(part)
    prune = parts.add_parser(
        "prune",
        help="remove older ones",
        description="Remove checkpoints that none of the options asks to keep (where one is not "
        "given, the recipe's checkpoint section is), and what resumes from an earlier step have "
        "put aside.",
    )
    run_verb(prune)
    prune.add_argument("--keep-last", type=positive, metavar="N", help="newest ones that stay")
    prune.add_argument("--keep-every", type=positive, metavar="STEPS", help="multiples that stay")
    prune.add_argument("--keep-best", type=positive, metavar="N", help="best scores that stay")
    prune.add_argument("--dry-run", action="store_true", help="say what would go, remove nothing")

    def run(args: argparse.Namespace) -> int:
        from stack.verbs import checkpoint

        if args.part == "prune":
            asked = {"last": args.keep_last, "every": args.keep_every, "best": args.keep_best}
            keep = {name: count for name, count in asked.items() if count}
            checkpoint.prune(args.run, keep=keep, dry_run=args.dry_run)
            return 0
        work = {"ls": checkpoint.list_all, "verify": checkpoint.verify_all}[args.part]
        return work(args.run, json_file=args.json)

    return run
