"""What several verbs take, and how they say what they have made."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stack.data.index import Manifest

Arguments = argparse.Namespace
Add = Callable[..., argparse.ArgumentParser]
"""Adds one verb: name, what runs it, its line in the list of verbs, its own description."""


def check_input(shards: Path) -> None:
    """A bad folder is told at once, not after the slow import of diffusers."""
    from stack.data.index import Manifest

    Manifest.read(shards)


def say(folder: Path, manifest: Manifest, *more: str) -> None:
    fields = " ".join(sorted(manifest.fields))
    counts = [f"{count} {name}" for name, count in manifest.counts.items()]
    parts = [f"{manifest.samples} samples in {len(manifest.shards)} shards ({fields})"]
    print(f"{folder}: {'; '.join([*parts, *counts, *more])}")


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 ({number})")
    return number


def within(least: int, most: int) -> Callable[[str], int]:
    """A whole number between two, both included."""

    def number(text: str) -> int:
        found = int(text)
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most} ({found})")
        return found

    return number


def seconds(text: str) -> float:
    """From a tenth of a second to a day."""
    found = float(text)
    if not 0.1 <= found <= 86_400:
        raise argparse.ArgumentTypeError(f"must be from 0.1 to 86400 seconds ({text})")
    return found


def size(text: str) -> int:
    """Bytes, with K, M or G for powers of 1024."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("K", "M", "G") else (text, "")
    return count(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative ({number})")
    return number


def add_order(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--seed", type=seed, default=0, help="of the random choices (%(default)s)")
    verb.add_argument(
        "--samples-per-shard", type=count, default=1000, help="size of a shard (%(default)s)"
    )
    add_overwrite(verb)


def add_conversion(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("shards", metavar="SHARDS", type=Path, help="folder of shards to read")
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder of shards")
    add_overwrite(verb)


def add_overwrite(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--overwrite", action="store_true", help="replace the shards in OUT")
