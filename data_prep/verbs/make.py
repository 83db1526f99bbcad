"""Verbs that make shards of what is on the disk."""

from __future__ import annotations

from pathlib import Path

from data_prep.verbs.options import Add, Arguments, add_order, count, say


def add_digits(add: Add) -> None:
    verb = add(
        "digits",
        _digits,
        "scans of handwritten digits in six colours, with captions",
        "Draw scikit-learn's 1797 scans of handwritten digits in six colours with captions such "
        "as 'a red seven', 'a red digit' or 'a seven'; write OUT/digits.parquet and OUT/shards/.",
    )
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder")
    verb.add_argument(
        "--resolution", type=count, default=32, help="side of the pictures, pixels (%(default)s)"
    )
    add_order(verb)


def _digits(args: Arguments) -> None:
    from data_prep.digits import digits

    manifest = digits(
        args.out,
        seed=args.seed,
        samples_per_shard=args.samples_per_shard,
        resolution=args.resolution,
        overwrite=args.overwrite,
    )
    say(args.out / "shards", manifest)


def add_shards(add: Add) -> None:
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
    add_order(verb)


def _shards(args: Arguments) -> None:
    from data_prep.parquet import shards_from_parquet

    manifest = shards_from_parquet(
        args.parquet,
        args.out,
        seed=args.seed,
        samples_per_shard=args.samples_per_shard,
        overwrite=args.overwrite,
    )
    say(args.out, manifest)


def add_import(add: Add) -> None:
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

    say(args.folder, import_shards(args.folder, skip_damaged=args.skip_damaged))


def add_cifar10(add: Add) -> None:
    verb = add(
        "cifar10",
        _cifar10,
        "CIFAR-10's pictures and classes into shards",
        "Write CIFAR-10 as shards with 'cls', in random order: from the Python batches (folder or "
        ".tar.gz), or from a parquet file with the columns image (bytes) and label. "
        "Unreadable images are left out, counted.",
    )
    verb.add_argument("source", metavar="SOURCE", type=Path, help="batches, or a parquet file")
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder of shards")
    verb.add_argument(
        "--split",
        choices=("train", "test"),
        help="of the batches (train); a parquet file is taken whole, and has no --split",
    )
    add_order(verb)


def _cifar10(args: Arguments) -> None:
    from data_prep.cifar10 import cifar10

    order = {"seed": args.seed, "samples_per_shard": args.samples_per_shard}
    say(
        args.out,
        cifar10(args.source, args.out, split=args.split, overwrite=args.overwrite, **order),
    )


def add_imagenet64(add: Add) -> None:
    verb = add(
        "imagenet64",
        _imagenet64,
        "ImageNet at 64 pixels, as EDM's dataset tool makes it, into shards",
        "Write pictures and classes as shards with 'cls', in random order, from a folder or zip "
        "with a dataset.json that lists the classes. Unreadable images are left out, counted.",
    )
    verb.add_argument("source", metavar="SOURCE", type=Path, help="folder or zip")
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder of shards")
    add_order(verb)


def _imagenet64(args: Arguments) -> None:
    from data_prep.imagenet64 import imagenet64

    manifest = imagenet64(
        args.source,
        args.out,
        seed=args.seed,
        samples_per_shard=args.samples_per_shard,
        overwrite=args.overwrite,
    )
    say(args.out, manifest)
