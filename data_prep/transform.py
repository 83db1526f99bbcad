"""From a folder of shards to another with shards of the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.shards import CARD, Sample, ShardFolder, Tally, sole_writer, write_shard
from stack.data.index import Manifest, ShardEntry
from stack.data.shard import SampleError, Shard
from stack.data.storage import LocalFolder
from stack.util.errors import UserError
from stack.util.files import write_atomic
from stack.util.progress import progress

Convert = Callable[[Iterator[Sample], Tally], Iterator[Sample]]
"""The samples of one shard to those of the new shard; what is met is added to the tally."""

Converted = tuple[ShardEntry | None, Tally]
"""The new shard, if it holds any sample."""

ConvertAll = Callable[[Sequence[ShardEntry]], Iterable[tuple[ShardEntry, Converted]]]
"""Writes the shards that it is given, in any order, and gives each with what it has become."""


def transform(
    title: str, source: Path, target: ShardFolder, convert: Convert, **known: Any
) -> Manifest:
    """Convert a folder of shards, one after the other, into a folder with shards of the same names.

    What the source's manifest says is carried over, except for `known`.
    """

    def converted(entries: Sequence[ShardEntry]) -> Iterator[tuple[ShardEntry, Converted]]:
        for entry in entries:
            yield entry, convert_shard(source, target.out, entry, convert)

    return transform_by(title, source, target, converted, **known)


def transform_by(
    title: str,
    source: Path,
    target: ShardFolder,
    convert: ConvertAll,
    **known: Any,
) -> Manifest:
    """`transform` by something that converts several shards at a time."""
    with sole_writer(target.out):
        return _transform_by(title, source, target, convert, known)


def _transform_by(
    title: str, source: Path, target: ShardFolder, convert: ConvertAll, known: dict[str, Any]
) -> Manifest:
    if target.finished:
        return Manifest.read(target.out)
    before = Manifest.read(source)
    missing = [entry for entry in before.shards if entry.name not in target.entries]
    with progress(title, total=before.samples, initial=target.samples) as bar:
        for entry, (written, tally) in convert(missing):
            target.add(written, tally)
            bar.advance(entry.samples)
    carried = {name: getattr(before, name) for name in ("resolution", "crop", "vae", "tokenizer")}
    carried["counts"] = {**before.counts, **target.tally.counts}
    carried["code"] = {**before.code, **known.pop("code", {})}
    manifest = target.finish(empty=not before.samples, **{**carried, **known})
    if (source / CARD).is_file():
        write_atomic(target.out / CARD, (source / CARD).read_bytes())
    return manifest


def convert_shard(source: Path, out: Path, entry: ShardEntry, convert: Convert) -> Converted:
    """Convert one shard. A sample whose bytes do not match their checksum is left out, counted as
    `dropped`."""
    tally = Tally()
    samples = _read_shard(source, entry, tally)
    return write_shard(out, entry.name, convert(samples, tally), tally), tally


def _read_shard(source: Path, entry: ShardEntry, tally: Tally) -> Iterator[Sample]:
    shard = Shard(LocalFolder(source), entry)
    for row in range(entry.samples):
        try:
            raw = shard.read(row, shard.fields)
        except SampleError:
            tally.counts["dropped"] += 1
            continue
        yield shard.key(row), {name: bytes(data) for name, data in raw.items()}
    shard.close()


def output_for(source: Path, out: Path, origin: dict[str, Any], *, overwrite: bool) -> ShardFolder:
    """The folder that a conversion of `source` writes; UserError when it is `source` itself."""
    if source.resolve() == out.resolve():
        raise UserError(f"{out}: is the folder to read; name a new folder to write")
    return ShardFolder(out, origin, overwrite=overwrite)
