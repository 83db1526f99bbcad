"""The doctor's checks of what a run reads: shards, the teacher, files that the recipe names."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

from stack.data.cache import ShardCache
from stack.data.collect import members_of
from stack.data.decode import FIELDS
from stack.data.index import Manifest
from stack.data.shard import SampleError, Shard
from stack.data.storage import Folder, expand
from stack.nets.edm_files import edm_config
from stack.nets.hub import fault, from_hub
from stack.nets.hub_cache import REMEDY
from stack.util.errors import UserError
from stack.verbs.doctor_findings import Finding, attempt

_ROWS = 64
"""Samples of a shard that are read at most."""


def data(
    specs: Sequence[str],
    wanted: Sequence[Sequence[str]],
    *,
    cache: ShardCache | None,
    retries: int,
    rank: int,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Finding]:
    """Every folder's manifest and files, and samples of one shard of each, another on every rank;
    many folders in one line, with what the slowest is read at.

    Args:
        specs: the recipe's data.folders. wanted: fields of `stack.data.decode.FIELDS` to decode,
            each with what it can be made from instead. share: place among the ranks of a node, and
            their number: together they read every folder, and each rank at least one.
    """
    place, ranks = share
    for spec in specs:
        folders = expand(spec, cache, retries)
        mine = folders[place % len(folders) :: ranks]
        found = [one for folder in mine for one in attempt(partial(_folder, folder, wanted, rank))]
        read = [one for one in found if one.value is not None]
        yield from (one for one in found if one.value is None)
        if len(folders) > 1 and read:
            slowest = min(one.value for one in read if one.value is not None)
            yield Finding("ok", f"{spec}: {len(folders)} folders, read at", slowest, "MB/s")
        else:
            yield from read


def _folder(folder: Folder, wanted: Sequence[Sequence[str]], rank: int) -> Iterator[Finding]:
    manifest = folder.manifest()
    folder.check(manifest)
    fields = [_present(folder, manifest, names) for names in wanted]
    entry = manifest.shards[rank % len(manifest.shards)]
    start = time.perf_counter()
    shard = Shard(folder, entry)
    try:
        rows = dict.fromkeys([0, entry.samples - 1, *range(min(_ROWS, entry.samples))])
        size = sum(_read(shard, row, fields) for row in rows)
    finally:
        shard.close()
    rate = size / (time.perf_counter() - start) / 1e6
    text = f"{folder}: {manifest.samples} samples in {len(manifest.shards)} shards, read at"
    yield Finding("ok", text, rate, "MB/s")


def _present(folder: Folder, manifest: Manifest, names: Sequence[str]) -> str:
    """The first of the fields that the shards hold."""
    for name in names:
        if manifest.holds(*FIELDS[name].members):
            return name
    lacking, made_by = " nor ".join(names), FIELDS[names[0]].made_by
    raise UserError(f"{folder}: no {lacking} in these shards; {made_by}")


def _read(shard: Shard, row: int, fields: Sequence[str]) -> int:
    """Bytes of one sample, read and decoded."""
    try:
        raw = shard.read(row, members_of(fields))
        for name in fields:
            FIELDS[name](raw)
    except SampleError as error:
        raise UserError(
            f"{shard.path}: {shard.key(row)}: {error}; run python -m data_prep verify on its folder"
        ) from None
    except OSError as error:
        raise UserError(f"{shard.path}: {error.strerror or error}") from None
    return sum(map(len, raw.values()))


def teacher(path: str, revision: str | None, *, hashed: bool) -> Iterator[Finding]:
    """Whether the pipeline is whole: a folder, or in the hub's cache of this node.

    Args:
        hashed: compare checksums, which one rank of a node does for all; else sizes.
    """
    found = fault(path, revision, hashed=hashed)
    if found and from_hub(path):
        found += f"; {REMEDY}"
    yield Finding("fail", found) if found else Finding("ok", f"{path}: whole")


def edm_teacher(path: str) -> Iterator[Finding]:
    """Whether an EDM network's folder is whole."""
    config = edm_config(path)
    yield Finding("ok", f"{path}: whole ({config.architecture}, {config.img_resolution} pixels)")


def named(field: str, path: str, there: bool) -> Finding:
    """Whether a file or run that a field names is there."""
    if there:
        return Finding("ok", f"{path}: there ({field})")
    return Finding("fail", f"{field}: {path}: missing, or not what it should be")
