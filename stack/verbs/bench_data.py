"""``stack bench data``: how fast shards are read on this machine."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path

import webdataset
from rich.console import Console
from rich.table import Table

from stack.data.batch import BatchLoader
from stack.data.collect import members_of
from stack.data.decode import FIELDS, decode_image
from stack.data.index import Manifest
from stack.data.shard import Shard
from stack.data.storage import LocalFolder
from stack.data.stream import ShardStream
from stack.evaluate.latency import device_name
from stack.util.files import write_json

_ROUNDS = 5
"""Turns that the contestants take one after another, so that a slow minute hits them all."""
_BARE_READS = 64
"""Samples read bare between two looks at the clock."""
_BARE_SHARDS = 100
"""Shards read bare, all of them open."""
_HELD_PICTURES = 64
"""Pictures kept in memory for the decoder alone."""

Read = Callable[[], int]
"""Reads on; returns how many samples it read."""


@dataclass
class _Clock:
    """What one contestant has done."""

    samples: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def run(self, read: Read, seconds: float) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < seconds:
            self.samples += read()
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu

    @property
    def rates(self) -> dict[str, float]:
        return {
            "samples_per_second": self.samples / self.seconds,
            "samples_per_cpu_second": self.samples / self.cpu_seconds,
        }


def bench_data(
    folder: Path, *, fields: Sequence[str] = (), batch: int, seconds: float, json_file: Path | None
) -> None:
    """Read a folder by this project's stream, by plain webdataset, and the same bytes bare; in
    this process alone, and pictures also by the decoder alone. Prints a table.

    Args:
        fields: any of `stack.data.decode.FIELDS`; latents and token ids, or else pictures, if
            there are none. seconds: for each contestant.
    """
    manifest = Manifest.read(folder)
    chosen = list(dict.fromkeys(fields)) or _usual(manifest)
    batch = min(batch, manifest.samples)
    contestants = {
        "stream": _stream(folder, chosen, batch),
        "webdataset": _webdataset(folder, manifest, chosen, batch),
        "raw": _raw(folder, manifest, chosen),
    }
    if "image" in chosen:
        contestants["decode"] = _decoder(folder, manifest)
    clocks = {name: _Clock() for name in contestants}
    for read in contestants.values():
        read()
    for _ in range(_ROUNDS):
        for name, read in contestants.items():
            clocks[name].run(read, seconds / _ROUNDS)
    result = {name: clock.rates for name, clock in clocks.items()}
    if json_file:
        write_json(json_file, result)
    _print(f"{folder}: {' + '.join(chosen)}, batches of {batch}", result)


def _usual(manifest: Manifest) -> list[str]:
    """What training reads of these shards."""
    ready = [name for name in ("latent", "tokens") if manifest.holds(*FIELDS[name].members)]
    return ready or ["image"]


def _stream(folder: Path, fields: Sequence[str], batch: int) -> Read:
    stream = ShardStream(folder, global_batch=batch, lanes=batch, seed=0)
    batches = iter(BatchLoader(stream, fields))
    return lambda: len(next(batches)["position"])


def _webdataset(folder: Path, manifest: Manifest, fields: Sequence[str], batch: int) -> Read:
    """Plain webdataset, as its documentation reads such shards."""
    tars = [str(folder / entry.name) for entry in manifest.shards]
    members = [";".join(FIELDS[name].members) for name in fields]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the shuffling that is not asked for.
        data = webdataset.WebDataset(tars, shardshuffle=False)
    data = data.decode("rgb8").to_tuple(*members).batched(batch)
    batches = chain.from_iterable(iter(data) for _ in cycle([None]))
    return lambda: len(next(batches)[0])


def _raw(folder: Path, manifest: Manifest, fields: Sequence[str]) -> Read:
    """The same bytes by bare positioned reads, sample after sample of the first shards."""
    shards = [Shard(LocalFolder(folder), entry) for entry in manifest.shards[:_BARE_SHARDS]]
    members = members_of(fields)
    samples = [
        (shard.descriptor, shard.reads(row, members))
        for shard in shards
        for row in range(len(shard.index))
    ]
    turn = cycle(samples)

    def read(keep_open: Sequence[Shard] = shards) -> int:
        for descriptor, reads in islice(turn, _BARE_READS):
            for offset, length in reads:
                os.pread(descriptor, length, offset)
        return _BARE_READS

    return read


def _decoder(folder: Path, manifest: Manifest) -> Read:
    """Pictures from memory to pixels."""
    entry = manifest.shards[0]
    shard = Shard(LocalFolder(folder), entry)
    held = [
        bytes(data)
        for row in range(min(_HELD_PICTURES, entry.samples))
        for data in shard.read(row, FIELDS["image"].members).values()
    ]
    turn = cycle(held)

    def read() -> int:
        decode_image(next(turn))
        return 1

    return read


def _print(title: str, result: dict[str, dict[str, float]]) -> None:
    table = Table(title=title, caption=device_name("cpu"))
    table.add_column("")
    for column in ("samples/s", "samples/CPU s", "stream is"):
        table.add_column(column, justify="right")
    ours = result["stream"]["samples_per_cpu_second"]
    for name, rates in result.items():
        wall, cpu = rates["samples_per_second"], rates["samples_per_cpu_second"]
        table.add_row(name, f"{wall:,.0f}", f"{cpu:,.0f}", f"{ours / cpu:.2f}x")
    Console(highlight=False).print(table)
