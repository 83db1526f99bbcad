"""The command line `python -m data_prep`. A verb's module is imported when the verb runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stack.util.errors import UserError

if TYPE_CHECKING:
    from stack.data.index import Manifest

Arguments = argparse.Namespace
Add = Callable[..., argparse.ArgumentParser]
"""Adds one verb: name, what runs it, its line in the list of verbs, its own description."""

_ABOUT = """\
Prepare training data: pictures and captions into WebDataset shards, then latents and token ids
beside them. A verb writes a new folder and never changes its input; a killed run continues when
the same command is given again; the same input gives the same bytes.
"""

_EXAMPLE = """\
example:
  python -m data_prep digits data/digits
  python -m data_prep latents data/digits/shards data/digits/latents --vae TEACHER
  python -m data_prep captions data/digits/latents data/digits/train --tokenizer TEACHER
  python -m data_prep verify data/digits/train

TEACHER is a diffusers pipeline folder. `python -m data_prep VERB --help` says more of each verb.
"""


def _add_digits(add: Add) -> None:
    verb = add(
        "digits",
        _digits,
        "scans of handwritten digits in six colours, with captions",
        "Draw scikit-learn's 1797 scans of handwritten digits in six colours with captions such "
        "as 'a red seven', 'a red digit' or 'a seven'; write OUT/digits.parquet and OUT/shards/.",
    )
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder")
    verb.add_argument(
        "--resolution", type=_count, default=32, help="side of the pictures, pixels (%(default)s)"
    )
    _add_order(verb)


def _digits(args: Arguments) -> None:
    from data_prep.digits import digits

    manifest = digits(
        args.out,
        seed=args.seed,
        samples_per_shard=args.samples_per_shard,
        resolution=args.resolution,
        overwrite=args.overwrite,
    )
    _say(args.out / "shards", manifest)


def _add_shards(add: Add) -> None:
    verb = add(
        "shards",
        _shards,
        "a parquet file with image bytes and captions into shards",
        "Write the rows of a parquet file as shards, in random order. Needs the columns 'image' "
        "(bytes of PNG, JPEG or WebP files) and 'text'; 'id' becomes the key; everything but the "
        "image and the text goes into the sample's json. Unreadable images are left out, counted.",
    )
    verb.add_argument("parquet", metavar="PARQUET", type=Path, help="the file to read")
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder of shards")
    _add_order(verb)


def _shards(args: Arguments) -> None:
    from data_prep.parquet import shards_from_parquet

    manifest = shards_from_parquet(
        args.parquet,
        args.out,
        seed=args.seed,
        samples_per_shard=args.samples_per_shard,
        overwrite=args.overwrite,
    )
    _say(args.out, manifest)


def _add_import(add: Add) -> None:
    verb = add(
        "import",
        _import,
        "index an existing WebDataset folder, where it is",
        "Read every tar of a folder once, such as img2dataset's output, and write an index beside "
        "it and a manifest; no tar is changed or copied.",
    )
    verb.add_argument("folder", metavar="FOLDER", type=Path, help="folder of .tar files")
    verb.add_argument(
        "--skip-damaged", action="store_true", help="leave out tars that are cut short, counted"
    )


def _import(args: Arguments) -> None:
    from data_prep.foreign import import_shards

    _say(args.folder, import_shards(args.folder, skip_damaged=args.skip_damaged))


def _add_latents(add: Add) -> None:
    verb = add(
        "latents",
        _latents,
        "encode the images: adds latent.npy",
        "Add the posterior mean of an autoencoder, fp16 and unscaled, to every sample. The "
        "autoencoder's hash and scale go into the manifest; two are never mixed.",
    )
    _add_conversion(verb)
    verb.add_argument(
        "--vae", metavar="PIPELINE", type=Path, required=True, help="diffusers pipeline folder"
    )
    verb.add_argument(
        "--batch-size", type=_count, default=64, help="images encoded at once (%(default)s)"
    )
    verb.add_argument(
        "--device", default="cpu", help="where to encode, as torch names it (%(default)s)"
    )
    verb.add_argument(
        "--drop-images", action="store_true", help="leave the image files out of the new shards"
    )


def _latents(args: Arguments) -> None:
    _check_input(args.shards)
    from data_prep.latents import latents

    manifest = latents(
        args.shards,
        args.out,
        vae=args.vae,
        batch_size=args.batch_size,
        device=args.device,
        drop_images=args.drop_images,
        overwrite=args.overwrite,
    )
    _say(args.out, manifest)


def _add_captions(add: Add) -> None:
    verb = add(
        "captions",
        _captions,
        "clean the captions and tokenise them: adds tokens.npy",
        "Clean every caption (HTML entities, Unicode normal form, control characters, URLs, white "
        "space; the original stays in the json) and add its token ids. Captions that are empty or "
        "longer than the tokenizer's limit are counted.",
    )
    _add_conversion(verb)
    verb.add_argument(
        "--tokenizer",
        metavar="PIPELINE",
        type=Path,
        required=True,
        help="diffusers pipeline folder",
    )
    other = verb.add_mutually_exclusive_group()
    other.add_argument("--field", help="take captions from this field of the samples' json")
    other.add_argument(
        "--recaptions",
        metavar="PARQUET",
        type=Path,
        help="take captions from this file, by the column 'id'; samples it lacks keep theirs",
    )
    verb.add_argument("--column", default="caption", help="of --recaptions, the text (%(default)s)")


def _captions(args: Arguments) -> None:
    _check_input(args.shards)
    from data_prep.captions import captions

    manifest = captions(
        args.shards,
        args.out,
        tokenizer=args.tokenizer,
        field=args.field,
        recaptions=args.recaptions,
        column=args.column,
        overwrite=args.overwrite,
    )
    _say(args.out, manifest)


def _add_verify(add: Add) -> None:
    verb = add(
        "verify",
        _verify,
        "check every byte of a folder of shards",
        "Read every shard and compare tars, indexes and samples with their checksums. Each fault "
        "is one line; the exit status is 2 if there is any.",
    )
    verb.add_argument("folder", metavar="FOLDER", type=Path, help="folder of shards")


def _verify(args: Arguments) -> None:
    from data_prep.verify import verify

    manifest = verify(args.folder)
    _say(args.folder, manifest, "every checksum matches")


def _check_input(shards: Path) -> None:
    """A bad folder is told at once, not after the slow import of diffusers."""
    from stack.data.index import Manifest

    Manifest.read(shards)


def _say(folder: Path, manifest: Manifest, *more: str) -> None:
    fields = " ".join(sorted(manifest.fields))
    counts = [f"{count} {name}" for name, count in manifest.counts.items()]
    parts = [f"{manifest.samples} samples in {len(manifest.shards)} shards ({fields})"]
    print(f"{folder}: {'; '.join([*parts, *counts, *more])}")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 ({number})")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative ({number})")
    return number


def _add_order(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--seed", type=_seed, default=0, help="of the random choices (%(default)s)")
    verb.add_argument(
        "--samples-per-shard", type=_count, default=1000, help="size of a shard (%(default)s)"
    )
    _add_overwrite(verb)


def _add_conversion(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("shards", metavar="SHARDS", type=Path, help="folder of shards to read")
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder of shards")
    _add_overwrite(verb)


def _add_overwrite(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--overwrite", action="store_true", help="replace the shards in OUT")


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

    verbs_here = (_add_digits, _add_shards, _add_import, _add_latents, _add_captions, _add_verify)
    for add_verb in verbs_here:
        add_verb(add)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 2 for a user's mistake."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0
