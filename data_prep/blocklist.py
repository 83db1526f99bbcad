"""Rows that must not be used: by COYO's id, by URL, or by the perceptual hash of the image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.coyo import phash_numbers, utf8
from stack.util.errors import UserError

Kind = Literal["ids", "urls", "phash"]

_PORTS = {"http": "80", "https": "443"}
_ID = re.compile(r"[0-9]{1,19}")
_PHASH = re.compile(r"[0-9a-fA-F]{16}")
_COMMENT = re.compile(r"(?:^|\s)#")
_CANONICAL = r"^https?://[a-z0-9.\-]+(?:[/?][!-\"$-~]*)?$"
"""URLs that `canonical` leaves as they are: no port, fragment, white space or capital host."""

_ODD = np.uint64(0x9E3779B97F4A7C15)

_EXPECTED = {
    "ids": "a decimal id",
    "urls": "a URL with ://",
    "phash": "16 hex digits",
    "any": "a URL with ://, a phash of 16 hex digits, or id:NUMBER",
}


def canonical(url: str) -> str:
    """A URL without surrounding white space, fragment and default port, its scheme and host in
    lower case. Two URLs are equal if this is equal."""
    url = url.strip().partition("#")[0].rstrip()
    scheme, found, rest = url.partition("://")
    if not found:
        return url
    end = min((place for place in map(rest.find, "/?") if place >= 0), default=len(rest))
    user, at, host = rest[:end].rpartition("@")
    scheme, host = scheme.lower(), host.lower()
    name, colon, port = host.rpartition(":")
    if colon and port in ("", _PORTS.get(scheme)):
        host = name
    return f"{scheme}://{user}{at}{host}{rest[end:]}"


def canonicals(urls: pa.Array) -> pa.Array:
    """`canonical` of a column; most URLs are so already, which costs little."""
    done = pc.fill_null(pc.match_substring_regex(urls, _CANONICAL), True)
    others = pc.invert(done)
    rest = [canonical(utf8(url)) for url in urls.filter(others).cast(pa.binary()).to_pylist()]
    return pc.replace_with_mask(urls, others, pa.array(rest, pa.string())) if rest else urls


@dataclass(frozen=True)
class Blocklist:
    """Ids, canonical URLs and phashes (lower-case hex digits) that are blocked."""

    ids: frozenset[int] = frozenset()
    urls: frozenset[str] = frozenset()
    phashes: frozenset[str] = frozenset()

    @classmethod
    def read(cls, files: Sequence[Path]) -> Blocklist:
        """Read text files with one URL, phash or `id:123` a line; `#` starts a comment.

        Raises:
            UserError: no such file, or a line is none of these.
        """
        return cls._of((kind, value) for file in files for kind, value in _entries(file, None))

    @classmethod
    def of(cls, kind: Kind, file: Path) -> Blocklist:
        """Read a text file in which every line is of one kind; ids are plain numbers there.

        Raises:
            UserError: no such file, or a line is of another kind.
        """
        return cls._of(_entries(file, kind))

    @classmethod
    def _of(cls, entries: Iterator[tuple[Kind, str]]) -> Blocklist:
        sets: dict[Kind, set[str]] = {"ids": set(), "urls": set(), "phash": set()}
        for kind, value in entries:
            sets[kind].add(value)
        ids = frozenset(map(int, sets["ids"]))
        return cls(ids, frozenset(sets["urls"]), frozenset(sets["phash"]))

    def __or__(self, other: Blocklist) -> Blocklist:
        return Blocklist(self.ids | other.ids, self.urls | other.urls, self.phashes | other.phashes)

    def __bool__(self) -> bool:
        return bool(self.ids or self.urls or self.phashes)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that `mask` looks at."""
        kinds = {"id": self.ids, "url": self.urls, "image_phash": self.phashes}
        return tuple(name for name, entries in kinds.items() if entries)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the entries, whatever their order and files."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()

    def lines(self) -> list[str]:
        """The entries, sorted, as a file has them that `read` reads."""
        ids = (f"id:{number}" for number in sorted(self.ids))
        return [*ids, *sorted(self.urls), *sorted(self.phashes)]

    def blocks(self, id: int | None, url: str | None, phash: str | None) -> bool:
        """Whether a row is blocked by any of the three."""
        return (
            id in self.ids
            or (url is not None and canonical(url) in self.urls)
            or (phash is not None and phash.lower() in self.phashes)
        )

    def mask(self, batch: pa.RecordBatch) -> np.ndarray:
        """True for blocked rows. The batch has `columns`, in the types of `data_prep.coyo`."""
        blocked = np.zeros(len(batch), bool)
        if self.ids:
            ids = batch.column("id")
            there = ids.is_valid().to_numpy(zero_copy_only=False)
            blocked |= there & _member(ids.fill_null(0).to_numpy(), self._sorted_ids)
        if self.phashes:
            numbers, valid = phash_numbers(batch.column("image_phash"))
            blocked |= valid & _member(numbers, self._sorted_phashes)
        if self.urls:
            urls = canonicals(batch.column("url").fill_null(""))
            for row in np.flatnonzero(_member(_sketch(urls), self._sketches)):
                blocked[row] |= utf8(urls[row].as_buffer().to_pybytes()) in self.urls
        return blocked

    @cached_property
    def _sorted_ids(self) -> np.ndarray:
        return np.sort(np.fromiter(self.ids, np.int64, len(self.ids)))

    @cached_property
    def _sorted_phashes(self) -> np.ndarray:
        numbers = (int(phash, 16) for phash in self.phashes)
        return np.sort(np.fromiter(numbers, np.uint64, len(self.phashes)))

    @cached_property
    def _sketches(self) -> np.ndarray:
        return np.unique(_sketch(pa.array(list(self.urls), pa.string())))


def _entries(file: Path, kind: Kind | None) -> Iterator[tuple[Kind, str]]:
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; name a text file with one entry a line") from None
    for number, line in enumerate(lines, 1):
        value = _COMMENT.split(utf8(line).strip(), maxsplit=1)[0].strip()
        if not value:
            continue
        entry = _entry(value, kind)
        if entry is None:
            raise UserError(f"{file}:{number}: {value}: expected {_EXPECTED[kind or 'any']}")
        yield entry


def _entry(value: str, kind: Kind | None) -> tuple[Kind, str] | None:
    """What a line says, in the form that is compared; None if it is not of the kind."""
    number = value if kind else value.removeprefix("id:")
    if kind in ("urls", None) and "://" in value:
        return "urls", canonical(value)
    if kind in ("phash", None) and _PHASH.fullmatch(value):
        return "phash", value.lower()
    if kind == "ids" or (kind is None and value.startswith("id:")):
        fits = _ID.fullmatch(number) and int(number) < 2**63
        return ("ids", number) if fits else None
    return None


def _member(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Which values are among `members`, which are sorted and not empty."""
    places = np.searchsorted(members, values)
    return members[np.minimum(places, len(members) - 1)] == values


def _sketch(texts: pa.Array) -> np.ndarray:
    """A number of the length, the first 128 bytes and the last 8 of every string, uint64: quick,
    and rarely equal for different URLs; those with equal ones are compared in full."""
    texts = pa.concat_arrays([texts])  # Its offsets begin at 0.
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[: len(texts) + 1].astype(np.int64)
    raw = texts.buffers()[2]
    data = np.frombuffer(raw if raw is not None and raw.size >= 8 else bytes(8), np.uint8)
    words = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # One from every byte on.
    starts, lengths = offsets[:-1], np.diff(offsets)
    mixed = lengths.astype(np.uint64)
    for first in (lengths - 8, *range(0, 128, 8)):
        inside = (first >= 0) & (first + 8 <= lengths)
        word = words[np.where(inside, starts + first, 0)]
        mixed = np.where(inside, mixed * _ODD + word, mixed)
    return mixed
