"""BatchLoader: batches of tensors from a ShardStream, through torch's own DataLoader.

A worker's task is a whole batch, named by its global step. DataLoader returns tasks in the order
given, so the batches are the same for any number of workers, and a state that counts delivered
batches needs nothing from the workers.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stack.data.collect import Batch, collector
from stack.data.decode import FIELDS
from stack.data.shard import Shard
from stack.data.storage import Folder
from stack.data.stream import ShardStream, Substitution
from stack.util.errors import UserError

log = logging.getLogger(__name__)

Tokenize = Callable[[list[str]], tuple[Tensor, int]]
"""Captions to int64 (B, 77) ids and how many were truncated."""
Encode = Callable[[Tensor], Tensor]
"""uint8 pictures (B, 3, H, W) to unscaled latents (B, 4, H / f, W / f)."""

_ALWAYS = ("position", "key")


class _Delivery(NamedTuple):
    """A batch, and what happened while it was read. `counts`: see `BatchLoader.counts`."""

    batch: Batch
    damage: list[Substitution]
    counts: dict[str, int]


class _Batches(Dataset[_Delivery | UserError]):
    """Item n is this rank's part of the global batch of step n. A UserError is an item too:
    raised in a worker, it would reach the user wrapped in a traceback."""

    def __init__(
        self, stream: ShardStream, fields: Sequence[str], tokenize: Tokenize | None
    ) -> None:
        self.stream, self.fields, self.tokenize = stream, list(fields), tokenize

    def __getitem__(self, step: int) -> _Delivery | UserError:
        try:
            return self._read(step)
        except UserError as error:
            return error

    def _read(self, step: int) -> _Delivery:
        positions = torch.tensor(self.stream.lanes.positions)
        collect, keys = collector(self.fields, len(positions)), list[str]()
        before = self._cached()

        def take(shard: Shard, row: int, place: int) -> None:
            collect(shard, row, place)
            keys.append(shard.key(row))

        damage = self.stream.fetch(step, take)
        batch = collect.batch() | {"position": positions, "key": keys}
        counts = {name: now - before[name] for name, now in self._cached().items()}
        if self.tokenize:
            batch["tokens"], counts["truncated_captions"] = self.tokenize(batch["text"])
        return _Delivery(batch, damage, counts)

    def _cached(self) -> dict[str, int]:
        cache = self.stream.cache
        return {"cache_hits": cache.hits, "cache_misses": cache.misses} if cache else {}


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A terminal and a scheduler signal the whole process group; the trainer, who decides when
    to stop, still needs the workers until its iteration is done."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    """At the end of a process: multiprocessing would wait forever for workers to heed SIGTERM."""
    for child in multiprocessing.active_children():
        child.kill()


class BatchLoader:
    """An endless iterator over this rank's part of each global batch.

    Args:
        fields: any of `stack.data.decode.FIELDS` and `key`.
        workers: processes that read and decode ahead; 0 reads in this one.
        prefetch: batches that each worker reads ahead.
        tokenize: makes `tokens` from captions where the shards hold none.
        encode: makes `latent` from pictures where the shards hold none, in this process.

    Each batch is a dict of what was asked for, and `position`, int64 (B,): the samples' places
    in the global batch.

    Raises:
        UserError: the shards lack a field (the message names what makes it).
    """

    def __init__(
        self,
        stream: ShardStream,
        fields: Sequence[str],
        *,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        tokenize: Tokenize | None = None,
        encode: Encode | None = None,
    ) -> None:
        self.stream, self.fields = stream, tuple(dict.fromkeys(("position", *fields)))
        self.workers, self.prefetch = workers, prefetch
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self._counts: Counter[str] = Counter(bad_samples=0, truncated_captions=0)
        self._kept: list[str] | None = None
        read = [name for name in self.fields if name not in _ALWAYS]
        self._tokenize = tokenize if _must_make(stream, read, "tokens", "text", tokenize) else None
        self._encode = encode if _must_make(stream, read, "latent", "image", encode) else None
        for name in read:
            for folder in _lacking(stream, name):
                raise UserError(f"{folder}: {name}: not in these shards; {FIELDS[name].made_by}")
        _check_same_makers(stream, read)
        self._batches = _Batches(stream, read, self._tokenize)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the stream's current place on."""
        loader = DataLoader(
            self._batches,
            sampler=_Steps(self.stream.step),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            pin_memory=self.pin_memory,
            collate_fn=_as_it_is,
            # DataLoader draws a seed for its workers: not from the training's own random state.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_trainer,
        )
        for item in _alive(loader):
            if isinstance(item, UserError):
                raise item
            batch = item.batch
            self._note(item)
            if self._encode:
                batch["latent"] = self._encode(batch["image"])
            self.stream.step += 1
            yield {name: batch[name] for name in self.fields}

    def _note(self, delivery: _Delivery) -> None:
        if delivery.counts.get("truncated_captions") and not self._counts["truncated_captions"]:
            log.warning("captions longer than the tokenizer's limit are cut and counted")
        if self._kept is None:
            self.stream.report(delivery.damage)
        else:
            self.stream.bad_samples += len(delivery.damage)
            self._kept += map(str, delivery.damage)
        self._counts.update(delivery.counts)
        self._counts["bad_samples"] = self.stream.bad_samples

    def counts(self) -> dict[str, int]:
        """What this rank has met since the start: damaged samples that were replaced
        (`bad_samples`), `truncated_captions`, and `cache_hits` and `cache_misses` of shards."""
        return dict(self._counts)

    def keep_damage(self) -> None:
        """From here on, do not log replaced samples: whoever asks for :meth:`damage` does."""
        self._kept = []

    def damage(self) -> list[str]:
        """A line for each sample replaced since the last call; none unless they are kept."""
        lines = self._kept or []
        self._kept = None if self._kept is None else []
        return lines

    def state_dict(self) -> dict[str, Any]:
        """The stream's place, counted in batches that were handed out."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)


def _alive(loader: DataLoader[_Delivery | UserError]) -> Iterator[_Delivery | UserError]:
    """What the loader gives, until one of its processes is killed."""
    handler = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    atexit.unregister(_kill_workers)
    atexit.register(_kill_workers)  # Runs before multiprocessing's own, which came earlier.
    if loader.num_workers and threading.current_thread() is threading.main_thread():
        # DataLoader's own handler raises wherever training happens to be at the time; without
        # it, the loss is found where the batch is awaited.
        signal.signal(signal.SIGCHLD, handler)
    try:
        yield from items
    except (ConnectionError, EOFError, FileNotFoundError, RuntimeError) as error:
        # What a worker raises is told as "Caught ..." and is a bug of ours.
        if not loader.num_workers or str(error).startswith("Caught"):
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"data.workers: a loader process is gone ({reason}); if memory ran out, take fewer "
            "of them or a smaller data.prefetch"
        ) from None


def _as_it_is(item: Any) -> Any:
    return item


def _must_make(
    stream: ShardStream, read: list[str], name: str, source: str, maker: object | None
) -> bool:
    """Whether a field that is to be read must, and can, be made from another one, which then is
    read in its place; said once."""
    if maker is None or name not in read or not _lacking(stream, name) or _lacking(stream, source):
        return False
    log.warning(
        "the shards hold no %s: made from %s while training; to have it ready, %s",
        name,
        source,
        FIELDS[name].made_by,
    )
    read.remove(name)
    read += [source] * (source not in read)
    return True


def _lacking(stream: ShardStream, name: str) -> list[Folder]:
    """The folders in which not every sample has a field."""
    members = FIELDS[name].members
    return [folder for folder, made in stream.manifests.items() if not made.holds(*members)]


def _check_same_makers(stream: ShardStream, fields: Sequence[str]) -> None:
    """Latents of two autoencoders, or ids of two tokenizers, must not meet in one batch."""
    for field, part in (("latent", "vae"), ("tokens", "tokenizer")):
        makers = {getattr(made, part): folder for folder, made in stream.manifests.items()}
        if field in fields and len(makers) > 1:
            folders = ", ".join(map(str, makers.values()))
            raise UserError(f"{folders}: {part}: not the same; make the {field} anew with one")


class _Steps(Sampler[int]):
    """Step numbers without end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        step = self.first
        while True:
            yield step
            step += 1
