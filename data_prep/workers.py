"""Processes that convert whole shards, one on each device."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.queues import Queue
from pathlib import Path

import torch

from data_prep.transform import Convert, Converted, convert_shard
from stack.data.index import ShardEntry

Make = Callable[[str], Convert]
"""What converts on a device; a picklable function, called once in each process."""

_made: list[Convert] = []
"""In a worker: its own."""


def convert_on(
    devices: Sequence[str], make: Make, source: Path, out: Path, entries: Sequence[ShardEntry]
) -> Iterator[tuple[ShardEntry, Converted]]:
    """Convert shards of `source` into `out`, in this process for one device, else in one process
    each. They come as they are done."""
    if len(devices) == 1:
        convert = make(devices[0])
        for entry in entries:
            yield entry, convert_shard(source, out, entry, convert)
        return
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for device in devices:
        free.put(device)
    # As many threads in each as there are here: sums depend on it, and so do bytes.
    given = (make, free, torch.get_num_threads())
    with ProcessPoolExecutor(len(devices), context, _begin, given) as pool:
        tasks = {pool.submit(_convert, source, out, entry): entry for entry in entries}
        try:
            for task in as_completed(tasks):
                yield tasks[task], task.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(make: Make, free: Queue[str], threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _made.append(make(free.get()))


def _end_with_parent() -> None:
    """A worker whose parent was killed would hold its GPU, and write into what a new run makes."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _convert(source: Path, out: Path, entry: ShardEntry) -> Converted:
    return convert_shard(source, out, entry, _made[0])
