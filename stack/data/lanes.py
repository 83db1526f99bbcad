"""Canonical lanes: which sample stands where in which batch, in closed form.

The order is a function of (seed, epoch, step) alone; the number of processes only says who reads
which part of it. For one source of N samples, C lanes and a global batch of G (k = G / C):

1.  An epoch has S = N // G steps and leaves out the R = N mod G samples that follow place
    epoch * R on the ring of all samples, so the part left out rotates.
2.  The shards are put in a random order, keyed by (seed, epoch), and their kept samples laid
    end to end; the range of S G places so formed starts at a random place and is cut into C
    lanes of S k places.
3.  Each lane is shuffled inside windows of `window` places.
4.  Step s takes places [s k, (s + 1) k) of every lane. Lane c fills positions [c k, (c + 1) k) of
    the global batch, and rank r of W owns lanes [r C / W, (r + 1) C / W).

So a batch holds samples of C distant parts of the dataset, a rank reads C / W shards at a time
(more when a window spans several), and nothing but one epoch's shard order is ever computed.

A mixture gives every source its own share of the lanes and its own epochs, by the same rules.
Random bits come from Philox raw output and a stable argsort, which no numpy version changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from stack.util.errors import UserError

Places = tuple[np.ndarray, np.ndarray]
"""Shard numbers and row numbers, equally shaped."""

_SHARD_ORDER, _START, _WINDOW = range(3)


def _bits(
    n: int, seed: int, epoch: int, purpose: int, source: int, a: int = 0, b: int = 0
) -> np.ndarray:
    """n random uint64, a function of the arguments only."""
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    counter = np.array([0, (purpose << 32) + source, a, b], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


@dataclass(frozen=True)
class _Epoch:
    """The kept samples of one epoch: runs of rows of one shard each, laid end to end."""

    shard: np.ndarray
    row: np.ndarray
    end: np.ndarray
    start_place: int

    def locate(self, places: np.ndarray) -> Places:
        places = (places + self.start_place) % self.end[-1]
        run = np.searchsorted(self.end, places, side="right")
        return self.shard[run], self.row[run] + places - self.end[run]


class SourceLanes:
    """The order of one source. `sizes`: samples per shard; `lanes`: how many lanes the source
    has in all; `owned`: the numbers of those to be located; `per_lane`: samples a lane gives to
    one step (k); `name`: of the source, for messages."""

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        lanes: int,
        owned: Sequence[int],
        per_lane: int,
        seed: int,
        window: int,
        source: int = 0,
        name: str = "the data",
    ) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.lanes, self.owned, self.per_lane = lanes, tuple(owned), per_lane
        self.seed, self.window, self.source = seed, window, source
        self.samples = int(self.sizes.sum())
        self.steps_per_epoch = self.samples // (lanes * per_lane)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"data.global_batch: {name} has {self.samples} samples, fewer than the "
                f"{lanes * per_lane} that one step takes of it; lower data.global_batch"
            )
        self.lane_length = self.steps_per_epoch * per_lane
        self._starts = np.asarray(owned, dtype=np.int64)[:, None] * self.lane_length
        # One entry is enough: steps are mostly asked for in order, and none spans two epochs.
        self._epochs: dict[int, _Epoch] = {}
        self._shuffles: dict[tuple[int, int], np.ndarray] = {}

    def locate(self, step: int) -> Places:
        """Where the samples of the owned lanes lie at step `step` (counted over all epochs): two
        arrays of shape (owned lanes, per_lane)."""
        epoch, step = divmod(step, self.steps_per_epoch)
        in_lane = np.empty((len(self.owned), self.per_lane), dtype=np.int64)
        first, stop = step * self.per_lane, (step + 1) * self.per_lane
        for window in range(first // self.window, (stop - 1) // self.window + 1):
            base = window * self.window
            lo, hi = max(first, base), min(stop, base + self.window)
            if (epoch, window) not in self._shuffles:
                self._shuffles = {(epoch, window): self._shuffle(epoch, window)}
            shuffled = self._shuffles[epoch, window][:, lo - base : hi - base]
            in_lane[:, lo - first : hi - first] = base + shuffled
        if epoch not in self._epochs:
            self._epochs = {epoch: self._lay_out(epoch)}
        return self._epochs[epoch].locate(self._starts + in_lane)

    def _shuffle(self, epoch: int, window: int) -> np.ndarray:
        """One permutation a lane of the places of a window (the last window may be short)."""
        length = min(self.window, self.lane_length - window * self.window)
        bits = [
            _bits(length, self.seed, epoch, _WINDOW, self.source, lane, window)
            for lane in self.owned
        ]
        return np.argsort(np.stack(bits), axis=1, kind="stable")

    def _lay_out(self, epoch: int) -> _Epoch:
        used = self.lanes * self.lane_length
        left_out = self.samples - used
        skip = epoch * left_out % self.samples
        if skip + left_out <= self.samples:
            kept = [(0, skip), (skip + left_out, self.samples)]
        else:
            kept = [(skip + left_out - self.samples, skip)]
        bits = _bits(len(self.sizes), self.seed, epoch, _SHARD_ORDER, self.source)
        order = np.argsort(bits, kind="stable")
        ends = np.cumsum(self.sizes)[order][:, None]
        begins = ends - self.sizes[order][:, None]
        low = np.maximum(begins, [a for a, _ in kept])
        high = np.minimum(ends, [b for _, b in kept])
        shard = np.broadcast_to(order[:, None], low.shape)
        full = high > low
        end = np.cumsum((high - low)[full])
        start = int(_bits(1, self.seed, epoch, _START, self.source)[0]) % used
        # row + place - end: the run's first row is reached at place end - length.
        return _Epoch(shard[full], (high - begins)[full], end, start)


@dataclass(frozen=True)
class _Part:
    """What one rank reads of one source: `here` says which of the rank's lanes these are."""

    source: SourceLanes
    first_shard: int
    here: np.ndarray


class CanonicalLanes:
    """The order of a whole dataset as one rank sees it.

    `sources` gives, per source, the samples of each of its shards; shards are numbered through
    all sources. Without weights pass one source. `names` are those of the sources in messages.
    UserError for sizes that do not divide, naming those that do.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[int]],
        *,
        global_batch: int,
        lanes: int,
        seed: int,
        window: int,
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_divides("lanes", lanes, "global_batch", global_batch)
        check_divides("world_size", world_size, "lanes", lanes)
        if window < 1:
            raise UserError(f"window: must be at least 1 ({window})")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        per_lane, local = global_batch // lanes, lanes // world_size
        mine = slice(rank * local, (rank + 1) * local)
        self.positions = np.arange(mine.start * per_lane, mine.stop * per_lane)
        self.steps_per_epoch = sum(map(sum, sources)) // global_batch
        self._shape = (local, per_lane)
        self._parts: list[_Part] = []
        names = names or [f"source {number}" for number in range(len(sources))]
        owner = share_lanes(lanes, weights or [1.0] * len(sources), names)
        first_shard = 0
        for number, sizes in enumerate(sources):
            here = owner == number
            source = SourceLanes(
                sizes,
                lanes=int(here.sum()),
                owned=(np.cumsum(here) - 1)[mine][here[mine]].tolist(),
                per_lane=per_lane,
                seed=seed,
                window=window,
                source=number,
                name=names[number],
            )
            self._parts.append(_Part(source, first_shard, np.flatnonzero(here[mine])))
            first_shard += len(sizes)

    def locate(self, step: int) -> Places:
        """Shard and row of each sample of this rank's part of global step `step` (counted over
        all epochs), in the order of `positions`."""
        shard, row = np.empty(self._shape, np.int64), np.empty(self._shape, np.int64)
        for part in self._parts:
            if len(part.here):
                local, row[part.here] = part.source.locate(step)
                shard[part.here] = part.first_shard + local
        return shard.ravel(), row.ravel()


def check_divides(name: str, value: int, of: str, whole: int) -> None:
    """UserError naming the legal values unless `value` is a divisor of `whole`."""
    if value < 1 or whole % value:
        legal = [n for n in range(1, whole + 1) if whole % n == 0]
        raise UserError(
            f"{name}: {value} does not divide {of} {whole}; legal: {', '.join(map(str, legal))}"
        )


def share_lanes(lanes: int, weights: Sequence[float], names: Sequence[str]) -> np.ndarray:
    """The source of each lane: shares as near to the weights as whole lanes allow, and sources
    spread evenly so that every rank reads of each in about its share."""
    for name, weight in zip(names, weights, strict=True):
        if not 0 < weight < inf:
            raise UserError(f"data.weights: {name}: must be positive and finite ({weight:g})")
    share = np.asarray(weights, dtype=np.float64) / sum(weights)
    given = np.zeros(len(weights), dtype=np.int64)
    owner = np.empty(lanes, dtype=np.int64)
    for lane in range(lanes):
        owner[lane] = np.argmax(share * (lane + 1) - given)
        given[owner[lane]] += 1
    if not given.all():
        empty = int(np.argmin(given))
        raise UserError(
            f"data.weights: {names[empty]}: {weights[empty]:g} gets none of {lanes} lanes; "
            "raise data.lanes or this weight"
        )
    return owner
