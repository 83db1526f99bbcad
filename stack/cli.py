"""The command line: parses, runs a verb, and turns what goes wrong into one line and a status."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from stack.arguments import VERBS
from stack.util import exits
from stack.util.errors import DENIED, PeerLostError, UserError
from stack.util.quiet import quiet_libraries

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
    except PeerLostError as error:
        _fail(str(error))
        return exits.PEER_LOST
    except OSError as error:
        if error.errno not in DENIED:
            raise
        return _fail(f"{error.filename or 'disk'}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return exits.INTERRUPTED


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
    return exits.USER_ERROR
