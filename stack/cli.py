"""The command line: arguments only. A verb's module is imported when the verb runs."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stack.util.errors import UserError
from stack.util.quiet import quiet_libraries

EXIT_USER_ERROR = 2
EXIT_STOPPED = 85
"""A signal asked the run to stop; its state is saved and --resume goes on."""
EXIT_INTERRUPTED = 130
"""Ctrl-C where there was nothing to save; what a shell reports for SIGINT."""

_DENIED = (errno.EACCES, errno.EDQUOT, errno.EISDIR, errno.ENOSPC, errno.EPERM, errno.EROFS)
"""What the user's disk or folders refuse; any other OSError is a bug."""

_ABOUT = """\
f-distill: a one-step student from a many-step diffusion teacher
(arXiv 2502.15681).

  python -m stack pretrain recipes/digits_teacher.yaml
  python -m stack distill  recipes/digits_js.yaml
  python -m stack evaluate runs/digits_js
  python -m stack export   runs/digits_js
  python -m stack report   runs/digits_js

`python -m stack VERB --help` says more of each verb.
"""

_OVERRIDES = "overrides of recipe fields, such as optim.student.lr=5e-6 seed=1"


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


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
    def work(recipe: Any, **how: bool) -> str | None:
        from stack.verbs.pretrain import pretrain

        return pretrain(recipe, **how)

    return _add_training(verb, "pretrain", work)


def _add_distill(verb: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    def work(recipe: Any, **how: bool) -> str | None:
        from stack.verbs.distill import distill

        return distill(recipe, **how)

    return _add_training(verb, "distill", work)


def _add_training(
    verb: argparse.ArgumentParser, job: str, work: Callable[..., str | None]
) -> Callable[[argparse.Namespace], int]:
    _training_verb(verb)

    def run(args: argparse.Namespace) -> int:
        recipe = _load(args, job)
        how = {"resume": args.resume, "overwrite": args.overwrite}
        return _on_ranks(recipe.parallel.processes, args, lambda: _stopped(work(recipe, **how)))

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

    def run(args: argparse.Namespace) -> int:
        from stack.verbs.export import export

        export(args.run, out=args.out, fp16=args.fp16)
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
        print_fields() if args.fields else print(dump_recipe(_load(args)), end="")
        return 0

    return run


_Add = Callable[[argparse.ArgumentParser], Callable[[argparse.Namespace], int]]
VERBS: dict[str, tuple[str, str, _Add]] = {
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
    "show-config": (
        "print a recipe with every default filled in",
        "Print the resolved recipe as YAML that loads to the same recipe.",
        _add_show_config,
    ),
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="stack", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (help_line, description, add) in VERBS.items():
        verb = verbs.add_parser(name, help=help_line, description=description)
        verb.set_defaults(action=add(verb))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    args = _parse(argv)
    quiet_libraries()
    try:
        return args.action(args)
    except UserError as error:
        return _fail(_with_file(str(error), args))
    except OSError as error:
        if error.errno not in _DENIED:
            raise
        return _fail(f"{error.filename or 'disk'}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with the overrides also taken from behind the options, where argparse before
    Python 3.13 refuses them."""
    top = parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    args, rest = top.parse_known_args(argv, argparse.Namespace(argv=argv))
    if rest and ("overrides" not in args or any(item.startswith("-") for item in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _with_file(message: str, args: argparse.Namespace) -> str:
    """The rooms below know arguments, not files: where a message begins with a field's name, the
    recipe's file goes in front."""
    field = re.match(r"[a-z][a-z0-9_.]*: ", message)
    return f"{args.recipe}: {message}" if field and "recipe" in args else message


def _fail(message: str) -> int:
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    return EXIT_USER_ERROR


def _load(args: argparse.Namespace, job: str | None = None) -> Any:
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
