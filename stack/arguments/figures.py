"""The verbs that compare runs: figures, report, ablate."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from stack.arguments.common import json_option, positive


def add_figures(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    verb.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folder of distill")
    verb.add_argument("--out", type=Path, default=Path("figures"), help="folder (default figures)")
    verb.add_argument(
        "--only", default="", metavar="NAMES", help="such as fig3,fig4a,grids; all by default"
    )
    verb.add_argument(
        "--prompt", action="append", default=[], help="of grids and fig6b; repeat for more"
    )
    verb.add_argument("--seed", type=int, default=0, help="of the pictures' noise (default 0)")
    verb.add_argument(
        "--samples", type=positive, default=6400, help="of fig5, per run (default 6400)"
    )
    verb.add_argument(
        "--toy",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override of the toy runs' recipe, such as iterations=600; repeat for more",
    )

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.figures import Wish, figures
        from stack.verbs.figures_runs import Run

        runs = [Run.open(folder) for folder in args.runs]
        wish = Wish(runs, args.out, args.prompt, args.seed, args.samples, args.toy)
        figures(wish, [name for name in args.only.split(",") if name])
        return 0

    return run


def add_ablate(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    verb.add_argument("plan", type=Path, help="plan (YAML), such as those of recipes/ablations")
    verb.add_argument(
        "--only", default="", metavar="TEXT", help="cells whose folder's name holds this"
    )
    verb.add_argument(
        "--seed", type=int, action="append", default=[], help="one of the plan's; repeat for more"
    )
    verb.add_argument(
        "--table", action="store_true", help="run nothing, write the tables of what is finished"
    )
    json_option(verb)

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.ablate import ablate

        return ablate(
            args.plan,
            only=args.only,
            seeds=args.seed,
            table_alone=args.table,
            json_file=args.json,
        )

    return run
