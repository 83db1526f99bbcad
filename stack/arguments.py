"""What each verb takes: its arguments, and what runs it. A verb's module is imported when the
verb runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stack.util.errors import UserError

EXIT_STOPPED = 85
"""A signal asked the run to stop; its state is saved and --resume goes on."""

_OVERRIDES = "overrides of recipe fields, such as optim.student.lr=5e-6 seed=1"


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _on_disk(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError("a URL; give a folder on a disk")
    return Path(text)


def _training_verb(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", type=Path, help="recipe file (YAML)")
    verb.add_argument("overrides", nargs="*", metavar="field=value", help=_OVERRIDES)
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


def _run_verb(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", type=Path, help="run folder that stack distill made")


def _json_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")


def _add_pretrain(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    def work(recipe: Any, how: Any) -> str | None:
        from stack.verbs.pretrain import pretrain

        return pretrain(recipe, how)

    return _add_training(verb, "pretrain", work)


def _add_distill(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    def work(recipe: Any, how: Any) -> str | None:
        from stack.verbs.distill import distill

        return distill(recipe, how)

    verb.add_argument(
        "--step",
        type=_positive,
        help="with --resume: go on from this checkpoint; later ones are put aside, not removed",
    )
    verb.add_argument(
        "--fork",
        type=Path,
        metavar="RUN",
        help="begin a new run with the whole state of another one's newest checkpoint, or of the "
        "one named RUN/checkpoints/step-N; name its folder with out=FOLDER",
    )
    return _add_training(verb, "distill", work)


def _add_training(
    verb: argparse.ArgumentParser, job: str, work: Callable[[Any, Any], str | None]
) -> Callable[[argparse.Namespace], int]:
    _training_verb(verb)
    verb.set_defaults(step=None, fork=None)

    def run(args: argparse.Namespace) -> int:
        if args.step and not args.resume:
            raise UserError(f"command line: --step: {args.step}: goes with --resume")
        recipe = load(args, job)

        def train() -> int:
            from stack.train.build_run import Start

            how = Start(args.resume, args.overwrite, args.step, args.fork)
            return _stopped(work(recipe, how))

        return _on_ranks(recipe.parallel.processes, args, train)

    return run


def _add_evaluate(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    _run_verb(verb)
    verb.add_argument("--samples", type=_positive, help="pictures a model (default: recipe's)")
    verb.add_argument("--seed", type=int, default=0, help="of prompts and noise (default 0)")
    _json_option(verb)

    def run(args: argparse.Namespace) -> int:
        from stack.config.load import stored_recipe

        recipe = stored_recipe(args.run)

        def work() -> int:
            from stack.verbs.evaluate import evaluate

            evaluate(args.run, samples=args.samples, seed=args.seed, json_file=args.json)
            return 0

        return _on_ranks(recipe.parallel.processes, args, work)

    return run


def _add_sample(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    _run_verb(verb)
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


def _add_export(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    _run_verb(verb)
    verb.add_argument("--out", type=Path, help="pipeline folder (default RUN/student)")
    verb.add_argument("--fp16", action="store_true", help="store the UNet in half precision")
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


def _add_report(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    _run_verb(verb)
    verb.add_argument("--out", type=Path, help="HTML file (default RUN/report.html)")

    def run(args: argparse.Namespace) -> int:
        from stack.report.report import write_report

        print(write_report(args.run, args.out))
        return 0

    return run


def _add_bench(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parts = verb.add_subparsers(dest="part", metavar="PART", required=True)
    data = parts.add_parser(
        "data",
        help="reading shards, beside plain webdataset",
        description="Samples per second of this project's stream (checksums on), of plain "
        "webdataset and of bare reads of the same bytes, in one process; pictures also of the "
        "decoder alone.",
    )
    data.add_argument("folder", type=_on_disk, help="folder of shards on a disk")
    data.add_argument(
        "--field",
        action="append",
        default=[],
        choices=("image", "latent", "tokens", "text"),
        help="what to read; repeat for more (default: latents and token ids, or else pictures)",
    )
    data.add_argument("--batch", type=_positive, default=128, help="samples (default %(default)s)")
    data.add_argument(
        "--seconds", type=_positive, default=10, help="for each reader (default %(default)s)"
    )
    _json_option(data)

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
        order.add_argument(name, type=_positive, default=default, help=f"{what} (%(default)s)")
    for name, values in (("--lanes", [8, 64, 256]), ("--window", [1, 256, 4096, 65536])):
        order.add_argument(name, type=_positive, nargs="+", default=values, metavar="N")
    _json_option(order)
    order.set_defaults(bench=_bench_order)
    return lambda args: args.bench(args)


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


def _add_show_config(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    verb.add_argument("recipe", type=Path, nargs="?", help="recipe file (YAML)")
    verb.add_argument("overrides", nargs="*", metavar="field=value", help=_OVERRIDES)
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


Add = Callable[[argparse.ArgumentParser], Callable[[argparse.Namespace], int]]
VERBS: dict[str, tuple[str, str, Add]] = {
    "pretrain": (
        "train a teacher (autoencoder, text encoder, UNet)",
        "Train a small text-to-image teacher from shards of pictures and captions and save it as "
        "a diffusers pipeline in OUT/teacher. Ctrl-C or SIGTERM saves the state and exits with "
        "status 85; --resume goes on.",
        _add_pretrain,
    ),
    "distill": (
        "distil a teacher into a one-step student",
        "The main job. Ctrl-C, SIGTERM or SIGUSR1 finishes the iteration, saves the state and "
        "exits with status 85; --resume goes on, bit for bit as if nothing had happened.",
        _add_distill,
    ),
    "evaluate": (
        "measure teacher and student side by side",
        "Generate pictures with the teacher (DDIM) and the student (one step) for the same "
        "captions and noise, and print Frechet distance, recall, precision, caption accuracy, "
        "mode coverage and images per second; also RUN/evaluation.json.",
        _add_evaluate,
    ),
    "sample": (
        "a grid of the teacher's pictures above the student's",
        "Same prompts, same noise: rows of the teacher above rows of the student, as one PNG.",
        _add_sample,
    ),
    "export": (
        "the student as a diffusers pipeline folder",
        "Write the student (its average, where the recipe has one) as a pipeline folder that "
        "StableDiffusionPipeline.from_pretrained loads and samples with num_inference_steps=1, "
        "guidance_scale=1.",
        _add_export,
    ),
    "report": (
        "one self-contained HTML page about a run",
        "Curves, sample grid, metrics and the resolved recipe in one file without outside links.",
        _add_report,
    ),
    "bench": (
        "how fast the parts of training are on this machine",
        "Measure one part of training; contestants take turns, so that a slow minute of the "
        "machine hits them all.",
        _add_bench,
    ),
    "show-config": (
        "print a recipe with every default filled in",
        "Print the resolved recipe as YAML that loads to the same recipe.",
        _add_show_config,
    ),
}


def load(args: argparse.Namespace, job: str | None = None) -> Any:
    """The recipe, which must be for ``job`` if one is given."""
    from stack.config.load import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    if job and recipe.job != job:
        raise UserError(
            f"{args.recipe}: job: the recipe is for stack {recipe.job}, not for stack {job}"
        )
    return recipe


def _on_ranks(processes: int, args: argparse.Namespace, work: Callable[[], int]) -> int:
    """Do the work if this process is a rank or the only one; else start the ranks."""
    if processes == 1 or "WORLD_SIZE" in os.environ:
        return work()
    from stack.parallel.launch import launch

    return launch(processes, [sys.executable, "-m", "stack", *args.argv])


def _stopped(reason: str | None) -> int:
    if reason is None:
        return 0
    print(f"stopped by {reason} with the state saved; --resume goes on", file=sys.stderr)
    return EXIT_STOPPED
