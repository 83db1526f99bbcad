"""ShardStream: an exact, elastic and resumable stream of samples from WebDataset shards.

Which sample comes when is fixed by `stack.data.lanes`; here folders are found and checked,
samples read by their index, damaged ones replaced, and the place in the stream kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from stack.data.cache import ShardCache
from stack.data.index import Manifest, ShardEntry
from stack.data.lanes import CanonicalLanes
from stack.data.shard import SampleError, Shard
from stack.data.storage import Folder, expand
from stack.util.errors import UserError
from stack.util.retry import retry

log = logging.getLogger(__name__)

WINDOW = 4096
"""Default shuffle window in samples of one lane: C * WINDOW samples mix with one another."""

_OPEN_SHARDS = 4096
"""Shards kept open by one process, where the system allows it so many files."""

_NEIGHBOURS = 16
"""Samples of one shard tried in place of a damaged one."""

_NEIGHBOUR_SHARDS = 4
"""Shards searched for a substitute, the damaged one's own included."""

Sample = dict[str, Any]

Take = Callable[[Shard, int, int], None]
"""Takes in a row of a shard as the n-th sample of a batch; SampleError if it cannot be used."""


@dataclass(frozen=True)
class Substitution:
    """A damaged sample and the neighbour delivered in its place."""

    shard: str
    key: str
    reason: str
    instead: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.key}: {self.reason}; {self.instead} instead"


class ShardStream:
    """An endless stream of this rank's samples.

    Each sample is a dict: `position` in the global batch, `key`, and the bytes of every field it
    has (`png`, `txt`, `latent.npy`, ...). The samples of one step are those of all ranks
    together; which they are does not depend on `world_size`.

    Args:
        folders: paths or URLs of folders of shards; variables, braces and globs are expanded
            (`$SCRATCH/part-{0..3}`, `s3://bucket/coyo-*`).
        global_batch: G, samples of one step over all ranks.
        lanes: C, a divisor of G and a multiple of every world size that may be used.
        seed: with the epoch number, what orders the samples.
        window: places of a lane shuffled among one another.
        weights: shares of the entries of `folders`, as near as whole lanes allow; each then runs
            through its own epochs. None: all folders together are one dataset.
        cache: where shards of remote folders are kept. retries: tries after the first of a read
            or a transfer that fails for the moment.

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
        cache: ShardCache | None = None,
        retries: int = 6,
    ) -> None:
        specs = [folders] if isinstance(folders, str | Path) else list(folders)
        if weights is not None and len(weights) != len(specs):
            raise UserError(f"data.weights: {len(weights)} of them for {len(specs)} folders")
        self.cache, self.retries = cache, retries
        found = [expand(spec, cache, retries) for spec in specs]
        sources = found if weights is not None else [list(chain(*found))]
        self.manifests: dict[Folder, Manifest] = {}
        shards = [self._load(source) for source in sources]
        self.lanes = CanonicalLanes(
            [[entry.samples for _, entry in source] for source in shards],
            global_batch=global_batch,
            lanes=lanes,
            seed=seed,
            window=window,
            weights=weights,
            names=[_name(source) for source in sources],
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
        self._source_ends = list(accumulate(map(len, shards), initial=0))
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def _load(self, source: Sequence[Folder]) -> list[tuple[Folder, ShardEntry]]:
        """The shards of one source, none twice: a folder may have two names, or a copy."""
        loaded: dict[str, Folder] = {}
        for folder in source:
            if folder in self.manifests:
                raise UserError(f"{folder}: named twice among the folders")
            manifest = self.manifests[folder] = folder.manifest()
            if not manifest.samples:
                raise UserError(f"{folder}: samples: the dataset is empty")
            if same := loaded.get(manifest.fingerprint):
                raise UserError(f"{folder}: same data as {same}; name it once")
            loaded[manifest.fingerprint] = folder
            folder.check(manifest)
        return [(one, entry) for one in source for entry in self.manifests[one].shards]

    def _fingerprint(
        self, sources: Sequence[Sequence[Folder]], weights: Sequence[float] | None
    ) -> str:
        prints = [[self.manifests[folder].fingerprint for folder in source] for source in sources]
        return hashlib.sha256(json.dumps([prints, weights and list(weights)]).encode()).hexdigest()

    def __iter__(self) -> Iterator[Sample]:
        """Samples from the current place on. A step counts as delivered with its last sample."""
        while True:
            samples: list[Sample] = []

            def take(shard: Shard, row: int, place: int, samples: list[Sample] = samples) -> None:
                raw = shard.read(row, shard.fields)
                fields = {name: bytes(data) for name, data in raw.items()}
                samples.append({"key": shard.key(row), **fields})

            self.report(self.fetch(self.step, take))
            for number, (position, sample) in enumerate(
                zip(self.lanes.positions.tolist(), samples, strict=True), 1
            ):
                self.step += number == len(samples)
                yield {"position": position, **sample}

    def fetch(self, step: int, take: Take) -> list[Substitution]:
        """Hand this rank's samples of global step `step` to `take`, in the order of their
        positions; returns what had to be replaced among them.

        Raises:
            UserError: a shard cannot be read, is not its manifest's, or is damaged all over.
        """
        damage: list[Substitution] = []
        shards, rows = self.lanes.locate(step)
        for place, (number, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            damage += self._take_good(take, number, row, place)
        if self.cache:
            used = set(shards.tolist())
            self._close(n for n, shard in self._open.items() if not shard.keep(used=n in used))
        return damage

    def _take_good(self, take: Take, number: int, row: int, place: int) -> Sequence[Substitution]:
        """Take one sample, or the first good one of its neighbours in its stead."""
        try:
            self._take(take, number, row, place)
        except SampleError as error:
            bad = self._shard(number)
            name, tries = f"{bad.path}: {bad.key(row)}: {error}", 0
            for other, near in self._neighbours(number, row):
                with suppress(SampleError):
                    self._take(take, other, near, place)
                    instead = self._shard(other).key(near)
                    return [Substitution(bad.path, bad.key(row), str(error), instead)]
                tries += 1
            raise UserError(
                f"{name}, nor is any of the {tries} samples after it good; "
                "run python -m data_prep verify on this folder"
            ) from None
        return ()

    def _take(self, take: Take, number: int, row: int, place: int) -> None:
        """Take one sample; where reading fails for the moment, again with its shard opened anew."""
        try:
            take(self._shard(number), row, place)
        except OSError as error:
            failed = [error]

            def again() -> None:
                self._close([number])
                if failed:
                    raise failed.pop()  # The try that has been.
                take(self._shard(number), row, place)

            retry(again, self._path(number), retries=self.retries)

    def _neighbours(self, number: int, row: int) -> Iterator[tuple[int, int]]:
        """Shard and row of what follows a sample: some in its shard, then some in the next ones
        of its source. A function of the sample alone, so the same on every rank."""
        source = bisect(self._source_ends, number) - 1
        first, end = self._source_ends[source : source + 2]
        for step in range(min(_NEIGHBOUR_SHARDS, end - first)):
            other = first + (number - first + step) % (end - first)
            samples = self._shards[other][1].samples
            for further in range(step == 0, min(_NEIGHBOURS, samples)):
                yield other, (row + further) % samples

    def _path(self, number: int) -> str:
        folder, entry = self._shards[number]
        return folder.file(entry.name)

    def _shard(self, number: int) -> Shard:
        shard = self._open.get(number)
        if shard is None:
            if len(self._open) >= open_limit():
                self._close([next(iter(self._open))])
            shard = self._open[number] = Shard(*self._shards[number])
        else:
            self._open.move_to_end(number)
        return shard

    def _close(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            if number in self._open:
                self._open.pop(number).close()

    def report(self, damage: Sequence[Substitution]) -> None:
        """Count and log replaced samples."""
        self.bad_samples += len(damage)
        for bad in damage:
            log.warning("%s", bad)

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


def _name(source: Sequence[Folder]) -> str:
    """One source in messages."""
    return f"{source[0]} and {len(source) - 1} more" if len(source) > 1 else str(source[0])


@cache
def open_limit() -> int:
    """How many shards a process may keep open: half of the files that it may open, once its soft
    limit is raised as far as is of use; the rest is for sockets, workers and libraries."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _OPEN_SHARDS
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)) // 2
