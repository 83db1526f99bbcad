"""Writing folders of shards: whole, durable, resumable, and the same bytes for the same input."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.tar import TarWriter
from stack.data.index import (
    MANIFEST,
    Manifest,
    Members,
    ShardEntry,
    build_index,
    check_shards,
    fingerprint,
    index_bytes,
)
from stack.util.code import code_version
from stack.util.errors import UserError
from stack.util.files import fsync, named, write_atomic

CARD = "DATASET_CARD.md"
"""What a folder that was made of the web says of itself."""

CODE = code_version(Path(__file__).parent)
"""The version of this package."""

JOURNAL = "unfinished.jsonl"
"""What an unfinished folder has in place of a manifest: its origin, then a line a shard."""

EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
"""Formats that a shard may hold, by Pillow's names, and the fields they are written to."""

IMAGES = ("png", "jpg", "jpeg", "webp")
"""Fields that hold a picture."""
_ORDER = (*IMAGES, "txt", "json", "cls", "latent.npy", "tokens.npy")

Sample = tuple[str, dict[str, bytes]]
"""Key, and the bytes of each field."""


@dataclass
class Tally:
    """What a manifest sums up over shards. `sizes` counts images by (width, height) as text."""

    fields: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.fields.update(other.fields)
        self.sizes.update(other.sizes)
        self.counts.update(other.counts)

    @property
    def resolution(self) -> int | None:
        """The side of the images when all are squares of one size."""
        sides = {side for size in self.sizes for side in size.split("x")}
        return int(sides.pop()) if len(sides) == 1 else None


class ShardFolder:
    """A folder of shards in the making.

    Shards appear whole: temporary name, fsync, rename, the index likewise, then a line in the
    journal. The manifest comes last and takes the journal's place, so a folder with a manifest is
    finished. Opening an unfinished folder of the same origin continues it.

    Raises:
        UserError: the folder holds something else and `overwrite` is off.
    """

    def __init__(self, out: Path, origin: dict[str, Any], *, overwrite: bool = False) -> None:
        self.out, self.origin = out, json.loads(json.dumps(origin))
        self.entries: dict[str, ShardEntry] = {}
        self.tally = Tally()
        there = None if overwrite else self._origin_there()
        self.finished = there == self.origin and (out / MANIFEST).exists()
        if there != self.origin:
            self._start(there, overwrite)
        elif self.finished:
            check_shards(out, Manifest.read(out).shards)
        else:
            self._continue()

    def _origin_there(self) -> dict[str, Any] | None:
        """The origin of the shards, finished or not, that the folder already holds."""
        if (self.out / MANIFEST).is_file():
            return Manifest.read(self.out).origin
        if (self.out / JOURNAL).is_file():
            return json.loads((self.out / JOURNAL).read_text().partition("\n")[0])
        return None

    def _start(self, there: dict[str, Any] | None, overwrite: bool) -> None:
        make_room(self.out, self.origin, there or {}, overwrite=overwrite)
        write_atomic(self.out / JOURNAL, json.dumps(self.origin) + "\n")

    def _continue(self) -> None:
        """Keep what the journal lists as finished, if it is still there."""
        text = (self.out / JOURNAL).read_text()
        # What follows the last newline is a line that the interrupted run was writing.
        whole = text[: text.rindex("\n") + 1]
        write_atomic(self.out / JOURNAL, whole)
        for line in whole.splitlines()[1:]:
            value = json.loads(line)
            entry = ShardEntry(**value.pop("entry"))
            path = self.out / entry.name
            if path.is_file() and path.stat().st_size == entry.bytes:
                self.entries[entry.name] = entry
                self.tally.add(Tally(**{name: Counter(value[name]) for name in value}))

    @property
    def samples(self) -> int:
        """Samples written so far."""
        return sum(entry.samples for entry in self.entries.values())

    def write(self, name: str, samples: Iterable[Sample], tally: Tally) -> None:
        """Write one shard. Reading `samples` may add to `tally`."""
        self.add(write_shard(self.out, name, samples, tally), tally)

    def add(self, entry: ShardEntry | None, tally: Tally) -> None:
        """Note a shard that has been written; nothing for None."""
        if entry is None:
            return
        path = self.out / JOURNAL
        with named(path), open(path, "a") as journal:
            journal.write(self.journal_line(entry, tally))
            journal.flush()
            os.fsync(journal.fileno())
        self.entries[entry.name] = entry
        self.tally.add(tally)

    @staticmethod
    def journal_line(entry: ShardEntry, tally: Tally) -> str:
        return json.dumps({"entry": entry.model_dump(), **vars(tally)}) + "\n"

    def finish(self, *, empty: bool = False, **known: Any) -> Manifest:
        """Write the manifest; `known` are its fields that the samples do not tell.

        Args:
            empty: there may be no samples, because there were none to begin with.
        """
        if not (self.entries or empty):
            raise UserError(f"{self.out}: samples: none left to write")
        manifest = manifest_of(self.entries.values(), self.tally, origin=self.origin, **known)
        manifest.write(self.out)
        (self.out / JOURNAL).unlink()
        return manifest


def manifest_of(entries: Iterable[ShardEntry], tally: Tally, **known: Any) -> Manifest:
    """A manifest of shards and what they sum up to; `known` are fields that these do not tell."""
    shards = tuple(sorted(entries, key=lambda entry: entry.name))
    told = {"resolution": tally.resolution, "counts": dict(tally.counts), **known}
    return Manifest(
        samples=sum(entry.samples for entry in shards),
        fields={name: count for name, count in tally.fields.items() if count},
        fingerprint=fingerprint(shards),
        shards=shards,
        **told,
    )


def make_room(out: Path, origin: dict[str, Any], there: dict[str, Any], *, overwrite: bool) -> None:
    """Make a folder that holds no shards and nothing else.

    Args:
        origin: what its shards are to be made from. there: of the shards that it holds, empty if
            it holds none. overwrite: remove those.

    Raises:
        UserError: it holds something, and `overwrite` is off.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is not a folder")
    if out.is_dir() and any(out.glob("[!.]*")):
        if not overwrite:
            other = [name for name in origin if there.get(name) != origin[name]]
            what = f"shards made with another {', '.join(other)}" if there else "other files"
            raise UserError(
                f"{out}: holds {what}; name a new folder, or replace the shards in it "
                "with --overwrite"
            )
        # The manifest first: a folder with one is taken for finished.
        for pattern in (MANIFEST, JOURNAL, "ledger.sqlite*", "*.tar", "*.index.npy"):
            for path in out.glob(pattern):
                path.unlink()
    out.mkdir(parents=True, exist_ok=True)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder, which is made if it is not there; a kill
    gives it free.

    Raises:
        UserError: it is no folder, or another process is writing.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; name another")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another one may have ended, and removed what was opened here.
            ours = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except BlockingIOError:
            ours = False
        if not ours:
            raise UserError(f"{folder}: another process is writing into this folder") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_shard(
    folder: Path, name: str, samples: Iterable[Sample], tally: Tally
) -> ShardEntry | None:
    """Write a tar and its index under temporary names, then rename them; None for no samples.
    Reading `samples` may add to `tally`."""
    path = folder / name
    rows: list[tuple[str, Members]] = []
    keys: set[str] = set()
    temporary = path.with_name(f".{path.name}.part")
    path.parent.mkdir(exist_ok=True)
    with named(path), open(temporary, "wb") as file:
        writer = TarWriter(file)
        for key, fields in samples:
            if key in keys:
                raise UserError(f"{path}: {key}: two samples have this key")
            keys.add(key)
            ordered = sorted(fields, key=_field_order)
            places = {part: writer.add(f"{key}.{part}", fields[part]) for part in ordered}
            rows.append((key, places))
            tally.fields.update(ordered)
        size = writer.close()
        file.flush()
        os.fsync(file.fileno())
    if not rows:
        temporary.unlink()
        return None
    index = index_bytes(build_index(rows))
    entry = ShardEntry(
        name=name,
        samples=len(rows),
        bytes=size,
        sha256=writer.hash.hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    write_atomic(folder / entry.index_name, index)
    os.replace(temporary, path)
    fsync(path.parent)
    return entry


def _field_order(name: str) -> tuple[int, str]:
    """Latents and token ids last and side by side, so that one read fetches both."""
    return (_ORDER.index(name) if name in _ORDER else _ORDER.index("cls"), name)
