"""Verbs of COYO-700M: from its parquet files to shards of pictures, and out of them again."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from data_prep.verbs.options import (
    Add,
    Arguments,
    add_overwrite,
    count,
    say,
    seconds,
    size,
    within,
)


def add_filter(add: Add) -> None:
    verb = add(
        "filter",
        _filter,
        "rows of COYO's parquet files that are worth fetching",
        "Keep the rows that pass every rule and are the first with their URL and image hash; "
        "write them to OUT as parquet files, and what each rule dropped to OUT/filter.json.",
    )
    verb.add_argument("rows", metavar="ROWS", type=Path, help="a parquet file, or a folder of some")
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder of parquet files")
    verb.add_argument("--rules", metavar="YAML", type=Path, help="in place of data_prep's own")
    _add_blocklist(verb)
    add_overwrite(verb)


def _filter(args: Arguments) -> None:
    from data_prep.filter.run import filter_rows

    summary = filter_rows(
        args.rows,
        args.out,
        rules=args.rules,
        blocklists=args.blocklist,
        overwrite=args.overwrite,
    )
    print("\n".join(summary.lines()))


def add_download(add: Add) -> None:
    verb = add(
        "download",
        _download,
        "fetch the pictures of rows with URLs into shards",
        "Fetch what the column 'url' names, make squares of it, and write shards with the column "
        "'text' as caption. What became of each row stands in OUT/ledger.sqlite; the same command "
        "again fetches what failed for a reason that may pass.",
    )
    verb.add_argument(
        "rows", metavar="ROWS", type=Path, help="folder of parquet files, such as filter's, or one"
    )
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder of shards")
    verb.add_argument(
        "--part",
        metavar="K/N",
        type=_part,
        help="only the K-th of N parts of the rows, K from 0, into OUT/part-K-of-N",
    )
    verb.add_argument("--samples-per-shard", type=count, default=1000, help="(%(default)s)")
    _add_pictures(verb)
    _add_limits(verb)
    _add_blocklist(verb)
    add_overwrite(verb)


def _add_pictures(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("pictures")
    group.add_argument(
        "--resolution",
        type=within(8, 8192),
        default=512,
        help="side in pixels (%(default)s); less is refused",
    )
    group.add_argument("--format", choices=("jpg", "png", "webp"), default="jpg", help="(jpg)")
    group.add_argument(
        "--quality", type=within(1, 100), default=95, help="of jpg and webp (%(default)s)"
    )
    group.add_argument(
        "--max-pixels", type=count, default=64_000_000, help="of the original (%(default)s)"
    )


def _add_limits(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("network")
    group.add_argument("--threads", type=within(1, 1024), default=64, help="fetching (%(default)s)")
    group.add_argument(
        "--per-host", type=count, default=4, help="requests to a host at a time (%(default)s)"
    )
    group.add_argument(
        "--deadline",
        metavar="SECONDS",
        type=seconds,
        default=30.0,
        help="for a URL, with its redirects, retries and their pauses (%(default)s)",
    )
    group.add_argument(
        "--max-bytes", metavar="SIZE", type=size, default="32M", help="of an answer (%(default)s)"
    )
    group.add_argument("--attempts", type=count, default=3, help="at a URL (%(default)s)")
    group.add_argument(
        "--user-agent",
        metavar="TEXT",
        type=_user_agent,
        help="who is asking; say how you can be reached",
    )
    group.add_argument(
        "--allow-private",
        action="store_true",
        help="also fetch from addresses that are not of the public internet",
    )


def _download(args: Arguments) -> None:
    from data_prep.download.fetch import Limits
    from data_prep.download.picture import Target
    from data_prep.download.run import USER_AGENT, Settings, download

    settings = Settings(
        target=Target(args.resolution, args.format, args.quality, args.max_pixels),
        samples_per_shard=args.samples_per_shard,
        limits=Limits(
            deadline=args.deadline,
            max_bytes=args.max_bytes,
            attempts=args.attempts,
            per_host=args.per_host,
            allow_private=args.allow_private,
        ),
        threads=args.threads,
        user_agent=args.user_agent or USER_AGENT,
        blocklists=args.blocklist,
    )
    out = args.out
    if args.part:
        out = out / "part-{:05d}-of-{:05d}".format(*args.part)
    say(out, download(args.rows, out, settings, part=args.part, overwrite=args.overwrite))


def add_merge(add: Add) -> None:
    verb = add(
        "merge",
        _merge,
        "one manifest for the parts of a folder",
        "Join the manifests of FOLDER/part-K-of-N into FOLDER/manifest.json, so that FOLDER is one "
        "folder of shards; no shard is moved. Once more after a part has changed.",
    )
    verb.add_argument("folder", metavar="FOLDER", type=Path, help="folder of parts")


def _merge(args: Arguments) -> None:
    from data_prep.merge import merge

    say(args.folder, merge(args.folder))


def add_forget(add: Add) -> None:
    verb = add(
        "forget",
        _forget,
        "take samples out of a folder of shards, for good",
        "Rebuild the shards that hold the samples that FILE lists, a line each, and keep download "
        "from fetching them again. For each folder that holds them: pictures, latents, captions.",
    )
    verb.add_argument("folder", metavar="FOLDER", type=Path, help="folder of shards, or of parts")
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("--ids", metavar="FILE", type=Path, help="COYO's ids")
    which.add_argument("--urls", metavar="FILE", type=Path, help="the pictures' URLs")
    which.add_argument("--phash", metavar="FILE", type=Path, help="image_phash, 16 hex digits")


def _forget(args: Arguments) -> None:
    from data_prep.blocklist import Blocklist
    from data_prep.forget import forget

    if args.ids:
        taken = Blocklist.of("ids", args.ids)
    else:
        taken = Blocklist.of("urls", args.urls) if args.urls else Blocklist.of("phash", args.phash)
    done = forget(args.folder, taken)
    print(f"{args.folder}: {done.samples} samples forgotten; {done.shards} shards rebuilt")


def _add_blocklist(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--blocklist",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="leave out what it lists: a URL, an image hash of 16 hex digits, or id:NUMBER a line",
    )


def _user_agent(text: str) -> str:
    if not (text.isascii() and text.isprintable() and text.split("/")[0].strip()):
        raise argparse.ArgumentTypeError(
            f"must be printable ASCII that begins with a name ({text!r})"
        )
    return text


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]) <= 99_999:
        raise argparse.ArgumentTypeError(f"must be K/N with 0 <= K < N <= 99999 ({text})")
    return int(found[1]), int(found[2])
