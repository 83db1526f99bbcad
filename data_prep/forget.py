"""`data_prep forget`: samples that someone has asked to be taken down leave a folder of shards.

A shard that holds some is written anew, under a new name; then the manifest names the new one, and
the old one is removed. After a kill at any moment the same command does what is left to do.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.blocklist import Blocklist
from data_prep.download.ledger import Ledger, has_ledger
from data_prep.download.outcome import FAILED
from data_prep.download.run import TOMBSTONES, write_manifest
from data_prep.merge import is_of_parts, merge, parts_of
from data_prep.shards import Sample, Tally, manifest_of, sole_writer, write_shard
from stack.data.index import MANIFEST, Manifest, ShardEntry
from stack.data.shard import SampleError, Shard
from stack.data.storage import LocalFolder
from stack.util.errors import UserError
from stack.util.files import write_atomic
from stack.util.progress import progress


@dataclass
class Forgotten:
    """What was taken out."""

    samples: int = 0
    shards: int = 0


@dataclass
class _Changes:
    """Keys and fields of the samples that leave, and by the name of each shard that loses some,
    what takes its place."""

    keys: list[str] = field(default_factory=list)
    fields: Counter[str] = field(default_factory=Counter)
    shards: dict[str, tuple[ShardEntry, Tally] | None] = field(default_factory=dict)


def forget(folder: Path, taken: Blocklist) -> Forgotten:
    """Take the samples whose json has an id, URL or phash of `taken` out of a folder of shards, or
    of parts; they are noted in FOLDER/tombstones.txt, so that `download` never asks for them again.

    Raises:
        UserError: not a folder of shards, or of samples without json.
    """
    if is_of_parts(folder):
        done = Forgotten()
        for part in parts_of(folder):
            one = forget(part, taken)
            done.samples, done.shards = done.samples + one.samples, done.shards + one.shards
        if (folder / MANIFEST).is_file():
            merge(folder)
        return done
    if has_ledger(folder):
        with sole_writer(folder), Ledger(folder) as ledger:
            return _from_download(folder, ledger, taken)
    Manifest.read(folder)  # Nothing is made in a folder of another kind.
    with sole_writer(folder):
        return _from_manifest(folder, Manifest.read(folder), taken)


def _from_download(folder: Path, ledger: Ledger, taken: Blocklist) -> Forgotten:
    """A folder of download, finished or not: the ledger says what is in it."""
    _bury(folder, taken)
    changes = _rebuild(folder, [entry for entry, _ in ledger.shards()], taken)
    waiting = [
        record.row
        for record in ledger.records()
        if record.state == FAILED and taken.blocks(record.id, record.url, record.phash)
    ]
    ledger.forget([*map(int, changes.keys), *waiting], changes.shards)
    if (folder / MANIFEST).is_file():
        write_manifest(folder, ledger)
    _remove(folder, ledger.about["replaced"], [entry for entry, _ in ledger.shards()])
    return Forgotten(len(changes.keys), len(changes.shards))


def _from_manifest(folder: Path, before: Manifest, taken: Blocklist) -> Forgotten:
    """A folder of any other verb."""
    if not before.holds("json"):
        raise UserError(f"{folder}: json: samples without it cannot be told by id, URL or hash")
    _bury(folder, taken)
    changes = _rebuild(folder, before.shards, taken)
    after = before
    if changes.shards:
        kept = [entry for entry in before.shards if entry.name not in changes.shards]
        counts = Counter(before.counts)
        counts["forgotten"] += len(changes.keys)
        after = manifest_of(
            [*kept, *(shard[0] for shard in changes.shards.values() if shard)],
            Tally(fields=Counter(before.fields) - changes.fields, counts=counts),
            resolution=before.resolution,
            crop=before.crop,
            code=before.code,
            vae=before.vae,
            tokenizer=before.tokenizer,
            origin=before.origin,
            replaced=(*before.replaced, *changes.shards),
        )
        after.write(folder)
    _remove(folder, after.replaced, after.shards)
    return Forgotten(len(changes.keys), len(changes.shards))


def _bury(folder: Path, taken: Blocklist) -> None:
    """Note what must not come back, before anything else."""
    path = folder / TOMBSTONES
    there = Blocklist.read([path] if path.is_file() else [])
    write_atomic(path, "".join(f"{line}\n" for line in (there | taken).lines()))


def _rebuild(folder: Path, entries: Sequence[ShardEntry], taken: Blocklist) -> _Changes:
    """Write the shards that lose samples anew."""
    changes = _Changes()
    with progress("forget", total=len(entries)) as bar:
        for entry in entries:
            shard = Shard(LocalFolder(folder), entry)
            if rows := {row for row in range(entry.samples) if _is_taken(shard, row, taken)}:
                kept = (row for row in range(entry.samples) if row not in rows)
                tally, name = Tally(), _next_revision(entry.name)
                new = write_shard(folder, name, (_sample(shard, row) for row in kept), tally)
                changes.shards[entry.name] = (new, tally) if new else None
                for row in sorted(rows):
                    changes.keys.append(shard.key(row))
                    changes.fields.update(f for f in shard.fields if shard.index[f]["offset"][row])
            shard.close()
            bar.advance()
    return changes


def _is_taken(shard: Shard, row: int, taken: Blocklist) -> bool:
    about = json.loads(_read(shard, row, ("json",)).get("json", b"{}"))
    return taken.blocks(about.get("id"), about.get("url"), about.get("image_phash"))


def _sample(shard: Shard, row: int) -> Sample:
    return shard.key(row), _read(shard, row, shard.fields)


def _read(shard: Shard, row: int, fields: tuple[str, ...]) -> dict[str, bytes]:
    try:
        return {name: bytes(data) for name, data in shard.read(row, fields).items()}
    except SampleError as error:
        raise UserError(
            f"{shard.path}: {shard.key(row)}: {error}; restore or make the shard anew first"
        ) from None


def _next_revision(name: str) -> str:
    """000012.tar, 000012-r1.tar, 000012-r2.tar, ..."""
    found = re.fullmatch(r"(.*?)(?:-r(\d+))?\.tar", name)
    assert found
    return f"{found[1]}-r{int(found[2] or 0) + 1}.tar"


def _remove(folder: Path, replaced: Sequence[str], there: Sequence[ShardEntry]) -> None:
    """Remove shards that have been replaced, and are not among those that are there."""
    for name in set(replaced) - {entry.name for entry in there}:
        for path in (folder / name, folder / f"{name.removesuffix('.tar')}.index.npy"):
            path.unlink(missing_ok=True)
