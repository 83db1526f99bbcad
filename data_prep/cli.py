"""The command line `python -m data_prep`: parses, runs a verb, and turns what goes wrong into one
line and a status."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from data_prep.verbs import VERBS
from data_prep.verbs.options import Arguments
from stack.util.errors import DENIED, UserError
from stack.util.quiet import quiet_libraries

_ABOUT = """\
Prepare training data: pictures and captions into WebDataset shards, then latents
and token ids beside them. A verb writes a new folder and never changes its input;
a killed run continues when the same command is given again; the same input gives
the same bytes.
"""

_EXAMPLE = """\
COYO-700M, part 0 of 128 (slurm/coyo_download.sbatch does all):
  python -m data_prep filter coyo/parquet coyo/rows
  python -m data_prep download coyo/rows coyo/shards --part 0/128
  python -m data_prep stats coyo/shards --html stats.html

the demo's data:
  python -m data_prep digits data/digits
  python -m data_prep latents data/digits/shards data/digits/latents --vae TEACHER
  python -m data_prep captions data/digits/latents data/digits/train \\
      --tokenizer TEACHER
  python -m data_prep verify data/digits/train

TEACHER is a diffusers pipeline folder. `python -m data_prep VERB --help` says more of
each verb.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser; parsed arguments carry the verb to run as `run`."""
    parser = argparse.ArgumentParser(
        "data_prep",
        description=_ABOUT,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def add(
        name: str, run: Callable[[Arguments], None], summary: str, about: str
    ) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=summary, description=about)
        verb.set_defaults(run=run)
        return verb

    for add_verb in VERBS:
        add_verb(add)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 2 for a user's mistake."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    quiet_libraries()
    try:
        args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DENIED:
            raise
        print(f"error: {error.filename or 'disk'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0
