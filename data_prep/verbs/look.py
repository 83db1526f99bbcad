"""Verbs that look at shards and at this machine."""

from __future__ import annotations

from pathlib import Path

from data_prep.verbs.options import Add, Arguments, count, say, seed


def add_verify(add: Add) -> None:
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
    say(args.folder, manifest, "every checksum matches")


def add_stats(add: Add) -> None:
    verb = add(
        "stats",
        _stats,
        "what became of the rows, and what the samples are like",
        "Rows by state, rule and reason, success by host, sizes and captions of a folder of "
        "shards, of parts, or of rows that filter has kept.",
    )
    verb.add_argument("folder", metavar="FOLDER", type=Path, help="what another verb has made")
    verb.add_argument("--json", metavar="FILE", type=Path, help="also write the figures here")
    verb.add_argument(
        "--html", metavar="FILE", type=Path, help="also write a page with pictures and captions"
    )
    verb.add_argument(
        "--sheet", metavar="N", type=count, default=48, help="pictures on the page (%(default)s)"
    )
    verb.add_argument("--seed", type=seed, default=0, help="of their choice (%(default)s)")


def _stats(args: Arguments) -> None:
    from data_prep.stats import lines, stats
    from stack.util.files import write_json

    found = stats(args.folder, html=args.html, sheet=args.sheet, seed=args.seed)
    if args.json:
        write_json(args.json, found)
    print("\n".join(lines(found)))


def add_bench(add: Add) -> None:
    verb = add(
        "bench",
        _bench,
        "how much of this machine download uses for pictures",
        "Decode, resize and encode pictures from memory on all CPUs; then download the same ones "
        "from a server on this machine; compare pictures per CPU second and per second.",
    )
    verb.add_argument("--pictures", type=count, default=2000, help="(%(default)s)")
    verb.add_argument("--json", metavar="FILE", type=Path, help="also write the figures here")


def _bench(args: Arguments) -> None:
    from data_prep.bench import bench, lines
    from stack.util.files import write_json

    found = bench(args.pictures)
    if args.json:
        write_json(args.json, found)
    print("\n".join(lines(found)))
