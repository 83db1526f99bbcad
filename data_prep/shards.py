"""Writing folders of shards: whole, durable, resumable, and the same bytes for the same input."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32

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
from stack.data.shard import SampleError, Shard
from stack.data.storage import LocalFolder
from stack.util.errors import UserError
from stack.util.files import fsync, write_atomic
from stack.util.progress import progress

JOURNAL = "unfinished.jsonl"
"""What an unfinished folder has in place of a manifest: its origin, then a line a shard."""

IMAGES = ("png", "jpg", "jpeg", "webp")
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
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out}: is not a folder")
        if self.out.is_dir() and any(self.out.glob("[!.]*")):
            if not overwrite:
                there = there or {}
                other = [name for name in self.origin if there.get(name) != self.origin[name]]
                what = f"shards made with another {', '.join(other)}" if there else "other files"
                raise UserError(
                    f"{self.out}: holds {what}; name a new folder, or replace the shards in it "
                    "with --overwrite"
                )
            # The manifest first: a folder with one is taken for finished.
            for pattern in (MANIFEST, JOURNAL, "*.tar", "*.index.npy"):
                for path in self.out.glob(pattern):
                    path.unlink()
        self.out.mkdir(parents=True, exist_ok=True)
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
        entry = _write_shard(self.out / name, samples, tally)
        if entry is None:
            return
        with open(self.out / JOURNAL, "a") as journal:
            journal.write(self.journal_line(entry, tally))
            journal.flush()
            os.fsync(journal.fileno())
        self.entries[name] = entry
        self.tally.add(tally)

    @staticmethod
    def journal_line(entry: ShardEntry, tally: Tally) -> str:
        return json.dumps({"entry": entry.model_dump(), **vars(tally)}) + "\n"

    def finish(self, **known: Any) -> Manifest:
        """Write the manifest; `known` are its fields that the samples do not tell."""
        shards = tuple(self.entries[name] for name in sorted(self.entries))
        if not shards:
            raise UserError(f"{self.out}: samples: none left to write")
        manifest = Manifest(
            samples=self.samples,
            fields=dict(self.tally.fields),
            fingerprint=fingerprint(shards),
            shards=shards,
            origin=self.origin,
            **{"resolution": self.tally.resolution, "counts": dict(self.tally.counts), **known},
        )
        manifest.write(self.out)
        (self.out / JOURNAL).unlink()
        return manifest


def output_for(source: Path, out: Path, origin: dict[str, Any], *, overwrite: bool) -> ShardFolder:
    """The folder that a conversion of `source` writes; UserError when it is `source` itself."""
    if source.resolve() == out.resolve():
        raise UserError(f"{out}: is the folder to read; name a new folder to write")
    return ShardFolder(out, origin, overwrite=overwrite)


def _write_shard(path: Path, samples: Iterable[Sample], tally: Tally) -> ShardEntry | None:
    """Write a tar and its index under temporary names, then rename them; None for no samples."""
    rows: list[tuple[str, Members]] = []
    keys: set[str] = set()
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb") as file:
        writer = _TarWriter(file)
        for key, fields in samples:
            if key in keys:
                raise UserError(f"{path}: {key}: two samples have this key")
            keys.add(key)
            ordered = sorted(fields, key=_field_order)
            places = {name: writer.add(f"{key}.{name}", fields[name]) for name in ordered}
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
        name=path.name,
        samples=len(rows),
        bytes=size,
        sha256=writer.hash.hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    write_atomic(path.with_name(entry.index_name), index)
    os.replace(temporary, path)
    fsync(path.parent)
    return entry


def _field_order(name: str) -> tuple[int, str]:
    """Latents and token ids last and side by side, so that one read fetches both."""
    return (_ORDER.index(name) if name in _ORDER else _ORDER.index("cls"), name)


class _TarWriter:
    """A plain tar without times, owners or modes, hashed while it is written."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file, self.size, self.hash = file, 0, hashlib.sha256()

    def add(self, name: str, data: bytes) -> tuple[int, int, int]:
        """Append a member; returns offset, size and crc32 of its bytes."""
        self._put(_tar_header(name.encode(), len(data)))
        place = (self.size, len(data), crc32(data))
        self._put(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        return place

    def close(self) -> int:
        """End the archive; returns its size in bytes."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._put(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        return self.size

    def _put(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.size += len(data)


def _tar_header(name: bytes, size: int) -> bytes:
    """The header of a regular file; what tarfile writes, in a tenth of the time."""
    if len(name) >= tarfile.LENGTH_NAME or size >= 8**11:
        info = tarfile.TarInfo(name.decode())
        info.size = size
        return info.tobuf(tarfile.GNU_FORMAT)
    zero = b"0000000"
    head = (name, b"0000644", zero, zero, b"%011o" % size, b"0" * 11, b" " * 8, b"0", b"ustar  ")
    header = struct.pack("100s8s8s8s12s12s8sc100x8s247x", *head)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


Convert = Callable[[Iterator[Sample], Tally], Iterator[Sample]]
"""The samples of one shard to those of the new shard; what is met is added to the tally."""


def transform(
    title: str, source: Path, target: ShardFolder, convert: Convert, **known: Any
) -> Manifest:
    """Convert a folder of shards, shard by shard, into a folder with shards of the same names.

    What the source's manifest says is carried over, except for `known`. A sample whose bytes do
    not match their checksum is left out, counted as `dropped`.
    """
    if target.finished:
        return Manifest.read(target.out)
    before = Manifest.read(source)
    with progress(title, total=before.samples, initial=target.samples) as bar:
        for entry in before.shards:
            if entry.name not in target.entries:
                tally = Tally()
                samples = _read_shard(source, entry, tally)
                target.write(entry.name, convert(samples, tally), tally)
                bar.advance(entry.samples)
    carried = {name: getattr(before, name) for name in ("resolution", "vae", "tokenizer")}
    carried["counts"] = {**before.counts, **target.tally.counts}
    return target.finish(**{**carried, **known})


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
