"""ShardStream: an exact, elastic and resumable stream of samples from WebDataset shards.

Which sample comes when is fixed by `stack.data.lanes`; here folders are found and checked,
samples read by their index, damaged ones replaced, and the place in the stream kept.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import braceexpand

from stack.data.index import Manifest, ShardEntry, check_shards
from stack.data.lanes import CanonicalLanes
from stack.data.shard import Raw, SampleError, Shard
from stack.util.errors import UserError

log = logging.getLogger(__name__)

WINDOW = 4096
"""Default shuffle window in samples of one lane: C * WINDOW samples mix with one another."""

_OPEN_SHARDS = 512
"""Shards kept open by one process, below the usual limit of 1024 files."""

_NEIGHBOURS = 16
"""Samples tried in place of a damaged one; so many bad in a row mean a foreign or ruined tar."""

Sample = dict[str, Any]


@dataclass(frozen=True)
class Substitution:
    """A damaged sample and the neighbour delivered in its place."""

    shard: str
    key: str
    reason: str
    instead: str


class ShardStream:
    """An endless stream of this rank's samples.

    Each sample is a dict: `position` in the global batch, `key`, and the bytes of every field it
    has (`png`, `txt`, `latent.npy`, ...). The samples of one step are those of all ranks
    together; which they are does not depend on `world_size`.

    Args:
        folders: folders of shards; glob and brace patterns are expanded (`data/part-{0..3}`).
        global_batch: G, samples of one step over all ranks.
        lanes: C, a divisor of G and a multiple of every world size that may be used.
        seed: with the epoch number, what orders the samples.
        window: places of a lane shuffled among one another.
        weights: shares of the entries of `folders`, as near as whole lanes allow; each then runs
            through its own epochs. None: all folders together are one dataset.

    Raises:
        UserError: a folder, manifest or shard is missing or does not fit the others; lanes or
            world size do not divide (the legal ones are named); fewer samples than a batch.
    """

    def __init__(
        self,
        folders: str | Path | Sequence[str | Path],
        *,
        global_batch: int,
        lanes: int,
        seed: int,
        window: int = WINDOW,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        specs = [folders] if isinstance(folders, str | Path) else list(folders)
        if weights is not None and len(weights) != len(specs):
            raise UserError(f"weights: {len(weights)} weights for {len(specs)} folders")
        found = [expand(spec) for spec in specs]
        sources = found if weights is not None else [list(chain(*found))]
        self.manifests: dict[Path, Manifest] = {}
        shards = [[shard for path in source for shard in self._load(path)] for source in sources]
        self.lanes = CanonicalLanes(
            [[entry.samples for _, entry in source] for source in shards],
            global_batch=global_batch,
            lanes=lanes,
            seed=seed,
            window=window,
            weights=weights,
            rank=rank,
            world_size=world_size,
        )
        self.steps_per_epoch = self.lanes.steps_per_epoch
        self.step = 0
        self.bad_samples = 0
        self._identity = {
            "seed": seed,
            "G": global_batch,
            "C": lanes,
            "window": window,
            "fingerprint": self._fingerprint(sources, weights),
        }
        self._shards = [shard for source in shards for shard in source]
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def _load(self, folder: Path) -> list[tuple[Path, ShardEntry]]:
        if folder in self.manifests:
            raise UserError(f"{folder}: named twice among the folders")
        manifest = self.manifests[folder] = Manifest.read(folder)
        if not manifest.samples:
            raise UserError(f"{folder}: samples: the dataset is empty")
        check_shards(folder, manifest.shards)
        return [(folder, entry) for entry in manifest.shards]

    def _fingerprint(
        self, sources: Sequence[Sequence[Path]], weights: Sequence[float] | None
    ) -> str:
        prints = [[self.manifests[folder].fingerprint for folder in source] for source in sources]
        return hashlib.sha256(json.dumps([prints, weights and list(weights)]).encode()).hexdigest()

    def __iter__(self) -> Iterator[Sample]:
        """Samples from the current place on. A step counts as delivered with its last sample."""
        while True:
            samples, damage = self.fetch(self.step, lambda raw: raw)
            self.report(damage)
            for number, sample in enumerate(samples, 1):
                self.step += number == len(samples)
                yield {k: bytes(v) if isinstance(v, memoryview) else v for k, v in sample.items()}

    def fetch(
        self, step: int, decode: Callable[[Raw], Sample], fields: tuple[str, ...] | None = None
    ) -> tuple[list[Sample], list[Substitution]]:
        """This rank's samples of global step `step`, in the order of their positions, and what
        had to be replaced among them. `decode` raises SampleError for a sample it cannot use."""
        samples, damage = [], []
        shards, rows = self.lanes.locate(step)
        for position, number, row in zip(
            self.lanes.positions.tolist(), shards.tolist(), rows.tolist(), strict=True
        ):
            shard, bad = self._shard(number), []
            while True:
                try:
                    sample = decode(shard.read(row, fields or shard.fields))
                    break
                except SampleError as error:
                    bad.append((shard.key(row), str(error)))
                    row = self._neighbour(shard, row, bad)
            key = shard.key(row)
            samples.append({"position": position, "key": key, **sample})
            damage += [Substitution(str(shard.path), *what, key) for what in bad]
        return samples, damage

    def _neighbour(self, shard: Shard, row: int, bad: Sequence[tuple[str, str]]) -> int:
        """The row after a damaged one; UserError when nothing but damage is found."""
        if len(bad) == min(_NEIGHBOURS, len(shard.index)):
            key, reason = bad[0]
            raise UserError(
                f"{shard.path}: {key}: {reason}, nor is any of {len(bad)} samples in a row good; "
                "the shard is damaged or its index is of another tar"
            )
        return (row + 1) % len(shard.index)

    def _shard(self, number: int) -> Shard:
        shard = self._open.get(number)
        if shard is None:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            shard = self._open[number] = Shard(*self._shards[number])
        else:
            self._open.move_to_end(number)
        return shard

    def report(self, damage: Sequence[Substitution]) -> None:
        """Count and log replaced samples."""
        self.bad_samples += len(damage)
        for bad in damage:
            log.warning("%s: %s: %s; %s instead", bad.shard, bad.key, bad.reason, bad.instead)

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream, in delivered steps, and what it is a place in."""
        epoch, step = divmod(self.step, self.steps_per_epoch)
        return {"epoch": epoch, "step": step, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place, at any legal world size.

        Raises:
            UserError: the state is of another dataset, seed, batch size, lanes or window.
        """
        for name, here in self._identity.items():
            if state[name] != here:
                folders = ", ".join(map(str, self.manifests))
                raise UserError(
                    f"{folders}: {name}: the saved place is of another stream "
                    f"({state[name]}, here {here}); resume with the same data and settings"
                )
        self.step = state["epoch"] * self.steps_per_epoch + state["step"]

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process gets: everything but the open files."""
        return {**self.__dict__, "_open": OrderedDict()}


def expand(spec: str | Path) -> list[Path]:
    """The folders that a path with brace and glob patterns stands for, in order."""
    folders: list[Path] = []
    for pattern in braceexpand.braceexpand(os.fspath(spec)):
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not matches:
            raise UserError(f"{pattern}: no folder matches this pattern")
        folders += map(Path, matches)
    return folders
