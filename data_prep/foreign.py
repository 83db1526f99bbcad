"""`data_prep import`: an existing WebDataset folder, such as img2dataset's, indexed where it is."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

from data_prep.shards import JOURNAL, ShardFolder, Tally, sole_writer
from stack.data.index import (
    MANIFEST,
    Manifest,
    ShardEntry,
    check_shards,
    fingerprint,
    index_bytes,
    index_shard,
)
from stack.util.errors import UserError
from stack.util.files import sha256_file, write_atomic
from stack.util.progress import progress


def import_shards(folder: Path, *, skip_damaged: bool = False) -> Manifest:
    """Write an index beside every tar of a folder, and the manifest; no tar is changed or copied.

    A killed import continues where it was. Tars added after the manifest are refused.

    Args:
        skip_damaged: leave out tars that are cut short or hold nothing, counted as
            `damaged_shards`, rather than stop at the first.

    Raises:
        UserError: no tars, a damaged one, or a manifest that is not of these tars.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise UserError(f"{folder}: no .tar files in it")
    with sole_writer(folder):
        return _import(folder, tars, skip_damaged)


def _import(folder: Path, tars: list[Path], skip_damaged: bool) -> Manifest:
    if (folder / MANIFEST).is_file():
        return _imported(folder, tars)
    entries, tally = _done(folder)
    with progress("import", total=len(tars), initial=len(entries)) as bar:
        for tar in tars:
            if tar.name in entries:
                continue
            try:
                entries[tar.name], found = _index(tar)
            except UserError as error:
                if not skip_damaged:
                    raise UserError(f"{error}; mend or remove it, or give --skip-damaged") from None
                tally.counts["damaged_shards"] += 1
                continue
            _note(folder, entries[tar.name], found)
            tally.add(found)
            bar.advance()
    if not entries:
        raise UserError(f"{folder}: all {len(tars)} tars are damaged")
    return _finish(folder, entries, tally)


def _imported(folder: Path, tars: list[Path]) -> Manifest:
    """What an earlier import has made."""
    manifest = Manifest.read(folder)
    listed = {entry.name for entry in manifest.shards}
    strangers = [tar for tar in tars if tar.name not in listed]
    if len(strangers) > manifest.counts.get("damaged_shards", 0):
        raise UserError(
            f"{strangers[0]}: not in {MANIFEST}, which the folder has already; remove that to "
            "import the folder anew"
        )
    check_shards(folder, manifest.shards)
    return manifest


def _done(folder: Path) -> tuple[dict[str, ShardEntry], Tally]:
    """The tars that an interrupted import has indexed, if they are still as they were."""
    entries: dict[str, ShardEntry] = {}
    tally = Tally()
    journal = folder / JOURNAL
    text = journal.read_text() if journal.is_file() else ""
    # What follows the last newline is a line that the interrupted run was writing.
    whole = text[: text.rfind("\n") + 1]
    for line in whole.splitlines():
        value = json.loads(line)
        entry = ShardEntry(**value.pop("entry"))
        tar = folder / entry.name
        if tar.is_file() and tar.stat().st_size == entry.bytes:
            entries[entry.name] = entry
            tally.add(Tally(**{name: Counter(value[name]) for name in value}))
    write_atomic(journal, whole)
    return entries, tally


def _index(tar: Path) -> tuple[ShardEntry, Tally]:
    """Index one tar and write the index beside it."""
    index = index_shard(tar)
    data = index_bytes(index)
    entry = ShardEntry(
        name=tar.name,
        samples=len(index),
        bytes=tar.stat().st_size,
        sha256=sha256_file(tar),
        index_sha256=hashlib.sha256(data).hexdigest(),
    )
    write_atomic(tar.with_name(entry.index_name), data)
    fields = (index.dtype.names or ())[1:]
    counts = {name: int((index[name]["offset"] > 0).sum()) for name in fields}
    return entry, Tally(fields=Counter(counts))


def _note(folder: Path, entry: ShardEntry, tally: Tally) -> None:
    with (folder / JOURNAL).open("a") as journal:
        journal.write(ShardFolder.journal_line(entry, tally))
        journal.flush()
        os.fsync(journal.fileno())


def _finish(folder: Path, entries: dict[str, ShardEntry], tally: Tally) -> Manifest:
    shards = tuple(entries[name] for name in sorted(entries))
    manifest = Manifest(
        samples=sum(entry.samples for entry in shards),
        fields=dict(tally.fields),
        counts=dict(tally.counts),
        fingerprint=fingerprint(shards),
        shards=shards,
        origin={"verb": "import"},
    )
    manifest.write(folder)
    (folder / JOURNAL).unlink()
    return manifest
