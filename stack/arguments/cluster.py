"""The verbs around runs on a cluster: status, doctor, fetch and job."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from stack.arguments.common import OVERRIDES, json_option, load, positive


def add_status(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    verb.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    json_option(verb)

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.status import show_status

        return show_status(args.runs, json_file=args.json)

    return run


def add_doctor(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    _recipe(verb)

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.doctor import doctor

        return doctor(load(args), json_file=args.json)

    return run


def add_fetch(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    _recipe(verb)

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.fetch import fetch

        return fetch(load(args), json_file=args.json)

    return run


def add_job(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parts = verb.add_subparsers(dest="part", metavar="PART", required=True)
    begin = parts.add_parser("begin", help="note that a job begins, unless it goes in circles")
    end = parts.add_parser("end", help="note how it ended; status 0: put it back into the queue")
    for part in (begin, end):
        part.add_argument("run", type=Path, help="run folder")
        for name, count, what in (("crashes", 3, "crashes"), ("stops", 20, "preemptions")):
            text = f"{what} in a row without progress that end the job (%(default)s)"
            part.add_argument(f"--max-{name}", type=positive, default=count, help=text)
    end.add_argument("--status", type=int, required=True, help="of srun")
    end.add_argument("--state", default="RUNNING", help="of the job (%(default)s)")
    end.add_argument("--ranks", type=Path, metavar="FOLDER", help="with the ranks' rank-N.status")

    def run(args: argparse.Namespace) -> int:
        from stack.verbs import job

        limits = job.Limits(args.max_stops, args.max_crashes)
        if args.part == "begin":
            return job.begin(args.run, limits)
        return job.end(args.run, args.status, args.state, limits, args.ranks)

    return run


def _recipe(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", type=Path, help="recipe file (YAML)")
    verb.add_argument("overrides", nargs="*", metavar="field=value", help=OVERRIDES)
    json_option(verb)
