"""The verbs that need no run: bench, import-edm, plan and show-config."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stack.arguments.common import OVERRIDES, json_option, load, on_disk, positive
from stack.util.errors import UserError

GPU_NAMES = ("a100-40gb", "a100-80gb", "h100", "h200", "b200", "l40s", "rtx4090", "rtx3090")
"""What stack.train.budget knows; named here because that is slow to import."""


def add_bench(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parts = verb.add_subparsers(dest="part", metavar="PART", required=True)
    data = parts.add_parser(
        "data",
        help="reading shards, beside plain webdataset",
        description="Samples per second of this project's stream (checksums on), of plain "
        "webdataset and of bare reads of the same bytes, in one process; pictures also of the "
        "decoder alone.",
    )
    data.add_argument("folder", type=on_disk, help="folder of shards on a disk")
    data.add_argument(
        "--field",
        action="append",
        default=[],
        choices=("image", "latent", "tokens", "text"),
        help="what to read; repeat for more (default: latents and token ids, or else pictures)",
    )
    data.add_argument("--batch", type=positive, default=128, help="samples (default %(default)s)")
    data.add_argument(
        "--seconds", type=positive, default=10, help="for each reader (default %(default)s)"
    )
    json_option(data)

    data.set_defaults(bench=_bench_data)
    order = parts.add_parser(
        "order",
        help="how well the order of samples is shuffled",
        description="Walk one epoch of an imagined dataset that is sorted by label, and print "
        "for each number of lanes and each window how much of that order is left.",
    )
    for name, default, what in (
        ("--shards", 100, "shards, each of one label"),
        ("--samples", 10000, "samples of a shard"),
        ("--batch", 512, "samples of a global batch"),
    ):
        order.add_argument(name, type=positive, default=default, help=f"{what} (%(default)s)")
    for name, values in (("--lanes", [8, 64, 256]), ("--window", [1, 256, 4096, 65536])):
        order.add_argument(name, type=positive, nargs="+", default=values, metavar="N")
    json_option(order)
    order.set_defaults(bench=_bench_order)
    _add_step(parts)
    return lambda args: args.bench(args)


def _add_step(parts: Any) -> None:
    step = parts.add_parser(
        "step",
        help="time, memory and cost of a distillation's steps",
        description="Steps of the student, of the critics and of both on random data: median time, "
        "CPU seconds, FLOPs and forwards of the UNet that they cost, share of the rate of a matrix "
        "product and of the GPU's dense rate, peak memory. Weights are random; no file of the "
        "teacher but its config is read.",
    )
    step.add_argument("recipe", type=Path, help="recipe file (YAML)")
    step.add_argument("overrides", nargs="*", metavar="field=value", help=OVERRIDES)
    step.add_argument(
        "--unet",
        metavar="NAME|FILE",
        help="sd15, small (channels 32, 32, 64, 64), or a config.json; by default the teacher's",
    )
    step.add_argument("--batch", type=positive, default=2, help="samples (default %(default)s)")
    step.add_argument(
        "--repeats", type=positive, default=5, help="after two for warming up (%(default)s)"
    )
    step.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two settings by turns, each field=value or several with spaces, quoted as in a shell",
    )
    step.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="a trace of one joint step, of A's with --compare",
    )
    json_option(step)
    step.set_defaults(bench=_bench_step)


def _bench_step(args: argparse.Namespace) -> int:
    from stack.verbs.bench_step import Setting, bench_step
    from stack.verbs.plan import subject_of

    settings = []
    for text in args.compare or [""]:
        try:
            words = [*args.overrides, *shlex.split(text)]
        except ValueError as error:
            raise UserError(f"--compare: {text}: {error}; quote it as in a shell") from None
        changed = argparse.Namespace(recipe=args.recipe, overrides=words, verb=args.verb)
        recipe = load(changed, "distill")
        settings.append(Setting(text or "step", recipe, subject_of(recipe, args.unet)))
    options = {"batch": args.batch, "repeats": args.repeats, "profile": args.profile}
    bench_step(settings, **options, json_file=args.json)
    return 0


def add_plan(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    verb.add_argument("recipe", type=Path, help="recipe file (YAML)")
    verb.add_argument("overrides", nargs="*", metavar="field=value", help=OVERRIDES)
    verb.add_argument("--gpus", type=positive, required=True, help="in all")
    verb.add_argument(
        "--gpu", default="h100", choices=GPU_NAMES, metavar="KIND", help=f"{', '.join(GPU_NAMES)}"
    )
    verb.add_argument("--node", type=positive, default=8, help="GPUs of a node (%(default)s)")
    verb.add_argument(
        "--share",
        type=float,
        default=0.4,
        help="of the GPU's dense rate that steps reach: share_of_peak of stack bench step, on such "
        "a GPU (%(default)s)",
    )
    json_option(verb)

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.plan import plan

        def changed(words: list[str]) -> Any:
            return load(argparse.Namespace(recipe=args.recipe, overrides=args.overrides + words))

        where = {"gpu": args.gpu, "gpus": args.gpus, "node": args.node, "share": args.share}
        return plan(changed, **where, json_file=args.json)

    return run


def _bench_data(args: argparse.Namespace) -> int:
    from stack.verbs.bench_data import bench_data

    what = {"fields": args.field, "batch": args.batch, "seconds": args.seconds}
    bench_data(args.folder, **what, json_file=args.json)
    return 0


def _bench_order(args: argparse.Namespace) -> int:
    from stack.verbs.bench_order import bench_order

    dataset = {"shards": args.shards, "samples": args.samples, "batch": args.batch}
    bench_order(**dataset, lanes=args.lanes, windows=args.window, json_file=args.json)
    return 0


def add_import_edm(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    verb.add_argument("file", type=Path, help="NVIDIA's pickle, such as edm-cifar10-...-vp.pkl")
    verb.add_argument("out", type=Path, help="folder to make, for a recipe's teacher.path")

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.import_edm import import_network

        import_network(args.file, args.out)
        return 0

    return run


def add_show_config(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    verb.add_argument("recipe", type=Path, nargs="?", help="recipe file (YAML)")
    verb.add_argument("overrides", nargs="*", metavar="field=value", help=OVERRIDES)
    verb.add_argument(
        "--fields", action="store_true", help="list every field with its default and meaning"
    )

    def run(args: argparse.Namespace) -> int:
        from stack.config.load import dump_recipe
        from stack.verbs.show_config import print_fields

        if not args.fields and args.recipe is None:
            raise UserError("command line: RECIPE: missing; give a recipe file or --fields")
        print_fields() if args.fields else print(dump_recipe(load(args)), end="")
        return 0

    return run
