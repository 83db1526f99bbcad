"""The folders of shards behind a name: one, or the parts of a download."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep.download.ledger import Ledger, has_ledger
from data_prep.merge import PART
from data_prep.shards import Tally
from data_prep.stats.rows import Rows
from stack.data.index import MANIFEST, Manifest, ShardEntry
from stack.util.errors import UserError
from stack.util.progress import progress


@dataclass(frozen=True)
class Part:
    """One folder of shards. `tally`: of its fields and counts."""

    path: Path
    shards: tuple[ShardEntry, ...]
    tally: Tally
    resolution: int | None
    unfinished: bool


@dataclass(frozen=True)
class Found:
    """The folders, and the names that all parts have, if these are parts."""

    parts: list[Part]
    names: list[str]

    @property
    def missing(self) -> list[str]:
        there = {part.path.name for part in self.parts}
        return [name for name in self.names if name not in there]


def find(folder: Path, rows: Rows) -> Found | None:
    """Read the manifests and ledgers, and add to `rows` what the ledgers tell; None where there
    are no shards."""
    names = _part_names(folder)
    paths = [folder / name for name in names if _holds_shards(folder / name)]
    if not paths and _holds_shards(folder):
        paths, names = [folder], []  # What is made of parts has their shards, and is none itself.
    if not paths and not names:
        return None
    parts = []
    with progress("ledgers", total=len(paths)) as bar:
        for path in paths:
            parts.append(_read(path, rows))
            bar.advance()
    return Found(parts, names)


def _part_names(folder: Path) -> list[str]:
    """The names of all parts of the download, those that are missing too."""
    matches = (PART.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
    totals = sorted({int(match[2]) for match in matches if match})
    if len(totals) > 1:
        raise UserError(f"{folder}: holds parts of {totals[0]} and parts of {totals[1]}")
    return [f"part-{n:05d}-of-{total:05d}" for total in totals for n in range(total)]


def _holds_shards(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or has_ledger(folder)


def _read(path: Path, rows: Rows) -> Part:
    if not has_ledger(path):
        return _listed(path, Manifest.read(path))
    with Ledger(path) as ledger:
        pending = rows.add(ledger)
        shards = ledger.shards()
        finished = not pending and not ledger.about.get("open")
    if finished and (path / MANIFEST).is_file():
        return _listed(path, Manifest.read(path))
    tally = Tally()
    for _, of_shard in shards:
        tally.add(of_shard)
    # Where no row was saved there is nothing to finish.
    unfinished = bool(shards) or not finished
    return Part(path, tuple(entry for entry, _ in shards), tally, tally.resolution, unfinished)


def _listed(path: Path, manifest: Manifest) -> Part:
    tally = Tally(fields=Counter(manifest.fields), counts=Counter(manifest.counts))
    return Part(path, manifest.shards, tally, manifest.resolution, False)
