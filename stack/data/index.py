"""The shard format on disk: `manifest.json`, tar shards and the byte index beside each tar.

A folder of shards holds

    manifest.json       what is in the folder and which bytes it is made of (`Manifest`)
    000000.tar          an ordinary WebDataset shard: members KEY.png, KEY.txt, KEY.latent.npy, ...
    000000.index.npy    one row per sample: key, and per field offset, size and crc32 in the tar

The index makes any sample reachable by one positioned read, and the checksums make damage visible.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from zlib_ng.zlib_ng import crc32

from stack.util.errors import UserError
from stack.util.files import parse_json, write_json

MANIFEST = "manifest.json"
LOCATION = np.dtype([("offset", "<i8"), ("size", "<i8"), ("crc32", "<u4")])
"""Where one member's bytes lie in the tar. Offset 0 (always a tar header) means: not there."""

Members = dict[str, tuple[int, int, int]]
"""field -> (offset, size, crc32) of one sample."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardEntry(_Strict):
    """One tar: how many samples and bytes it has, and the sha256 of the tar and of its index."""

    name: str
    samples: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str
    index_sha256: str

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".index.npy"


class VaeInfo(_Strict):
    """The autoencoder behind `latent.npy`: hash of its config and weights, its scaling factor."""

    hash: str
    scale: float


class TokenizerInfo(_Strict):
    """The tokenizer behind `tokens.npy`."""

    hash: str


class Manifest(_Strict):
    """`manifest.json`.

    `fields` counts, per member suffix, the samples that have it. `resolution` is the side in
    pixels when every image is a square of that side; `crop` is `centre` if download has made them
    so. `counts` are what the steps of preparation met (`truncated` captions, `dropped` samples,
    ...), `code` is the version of each. `origin` is what the folder was made from and with which
    settings. `replaced` are shards that samples were taken out of, for good; they are gone.
    """

    format: Literal[1] = 1
    samples: int
    fields: dict[str, int]
    resolution: int | None = None
    crop: Literal["centre"] | None = None
    vae: VaeInfo | None = None
    tokenizer: TokenizerInfo | None = None
    counts: dict[str, int] = {}
    code: dict[str, str] = {}
    origin: dict[str, Any] = {}
    fingerprint: str
    shards: tuple[ShardEntry, ...]
    replaced: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check a folder's manifest; UserError names the file and field at fault."""
        path = folder / MANIFEST
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of shards")
        if not path.is_file():
            raise UserError(f"{path}: missing; the folder is empty, unfinished or not of shards")
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, data: bytes, path: str) -> Manifest:
        """A manifest from the bytes of the file `path`, checked."""
        try:
            manifest = cls.model_validate(parse_json(data, path))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) + ": " if first["loc"] else ""
            raise UserError(f"{path}: {field}{first['msg']} ({first['input']!r})") from None
        manifest._check(path)
        return manifest

    def _check(self, path: str) -> None:
        total = sum(entry.samples for entry in self.shards)
        if total != self.samples:
            raise UserError(f"{path}: samples: {self.samples}, but its shards add up to {total}")
        if self.fingerprint != fingerprint(self.shards):
            raise UserError(f"{path}: fingerprint: does not match its list of shards")

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, self.model_dump())

    def holds(self, *alternatives: str) -> bool:
        """Whether every sample has one of these fields (a sample has one kind of image)."""
        return sum(self.fields.get(name, 0) for name in alternatives) >= self.samples


def fingerprint(shards: Sequence[ShardEntry]) -> str:
    """sha256 over what the shards contain, so equal data has an equal fingerprint."""
    content = [entry.model_dump() for entry in shards]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_shards(folder: Path, shards: Sequence[ShardEntry]) -> None:
    """Compare a folder's files with its manifest by name and size, without opening them."""
    for entry in shards:
        path = folder / entry.name
        if not path.is_file():
            raise UserError(f"{path}: missing, but listed in {folder / MANIFEST}")
        if (size := path.stat().st_size) != entry.bytes:
            raise UserError(
                f"{path}: bytes: {size} on disk, {entry.bytes} in {MANIFEST}; "
                "the tar was cut short or replaced"
            )
        if not (folder / entry.index_name).is_file():
            raise UserError(f"{folder / entry.index_name}: missing, but listed in {MANIFEST}")


def split_member(name: str) -> tuple[str, str]:
    """WebDataset's rule: KEY is the path up to the first dot of its last part, the rest is the
    field."""
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.partition(".")
    return folder + slash + stem, field.lower()


def build_index(samples: Sequence[tuple[str, Members]]) -> np.ndarray:
    """The index of one shard, a structured array with one row per sample in tar order."""
    fields = sorted({field for _, members in samples for field in members})
    keys = [key.encode() for key, _ in samples]
    width = max(len(key) for key in keys)
    index = np.zeros(len(samples), [("key", f"S{width}"), *((name, LOCATION) for name in fields)])
    index["key"] = keys
    for name in fields:
        index[name] = [members.get(name, (0, 0, 0)) for _, members in samples]
    return index


def index_bytes(index: np.ndarray) -> bytes:
    """The content of an `.index.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    return buffer.getvalue()


def index_shard(path: Path) -> np.ndarray:
    """Index any WebDataset tar by reading it through; UserError when it is not a whole tar."""
    samples: dict[str, Members] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, field = split_member(member.name)
                data = _member_bytes(tar, member)
                place = (member.offset_data, len(data), crc32(data))
                samples.setdefault(key, {})[field] = place
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not a whole tar ({error})") from None
    if not samples:
        raise UserError(f"{path}: holds no samples")
    return build_index(list(samples.items()))


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    data = stream.read() if stream else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name} is cut short")
    return data


def parse_index(data: bytes, entry: ShardEntry, path: str) -> np.ndarray:
    """A shard's index from the bytes of the file `path`; UserError unless the manifest lists it."""
    if hashlib.sha256(data).hexdigest() != entry.index_sha256:
        raise UserError(f"{path}: index_sha256: not the index that {MANIFEST} lists for this tar")
    index: np.ndarray[Any, Any] = np.load(io.BytesIO(data), allow_pickle=False)
    if len(index) != entry.samples:
        raise UserError(f"{path}: samples: {len(index)}, but {MANIFEST} says {entry.samples}")
    return index
