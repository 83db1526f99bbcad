"""BatchLoader: batches of tensors from a ShardStream, through torch's own DataLoader.

A worker's task is a whole batch, named by its global step. DataLoader returns tasks in the order
given, so the batches are the same for any number of workers, and a state that counts delivered
batches needs nothing from the workers.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stack.data.decode import FIELDS
from stack.data.shard import Raw
from stack.data.stream import Sample, ShardStream, Substitution
from stack.util.errors import UserError

log = logging.getLogger(__name__)

Batch = dict[str, Any]
Tokenize = Callable[[list[str]], tuple[Tensor, int]]
"""Captions to int64 (B, 77) ids and how many were truncated."""

_ALWAYS = ("position", "key")

Delivery = tuple[Batch, list[Substitution]]


class _Batches(Dataset[Delivery | UserError]):
    """Item n is this rank's part of the global batch of step n. A UserError is an item too:
    raised in a worker, it would reach the user wrapped in a traceback."""

    def __init__(
        self, stream: ShardStream, fields: Sequence[str], tokenize: Tokenize | None
    ) -> None:
        self.stream, self.tokenize = stream, tokenize
        self.fields = list(fields)
        self.decoders = [(name, FIELDS[name]) for name in fields]
        self.members = tuple(member for name in fields for member in FIELDS[name].members)

    def __getitem__(self, step: int) -> Delivery | UserError:
        try:
            return self._read(step)
        except UserError as error:
            return error

    def _read(self, step: int) -> Delivery:
        samples, damage = self.stream.fetch(step, self._decode, self.members)
        batch: Batch = {name: _stack(name, samples) for name in self.fields}
        batch["position"] = torch.tensor([sample["position"] for sample in samples])
        batch["key"] = [sample["key"] for sample in samples]
        if self.tokenize:
            batch["tokens"], batch["truncated"] = self.tokenize(batch["text"])
        return batch, damage

    def _decode(self, raw: Raw) -> Sample:
        return {name: field(raw) for name, field in self.decoders}


def _stack(name: str, samples: Sequence[Sample]) -> Any:
    shapes = {getattr(sample[name], "shape", ()): sample["key"] for sample in samples}
    if len(shapes) > 1:
        seen = "; ".join(f"{key} has {shape}" for shape, key in sorted(shapes.items()))
        raise UserError(f"{name}: samples of one batch differ in shape: {seen}")
    return FIELDS[name].stack([sample[name] for sample in samples])


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A terminal and a scheduler signal the whole process group; the trainer, who decides when
    to stop, still needs the workers until its iteration is done."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class BatchLoader:
    """An endless iterator over this rank's part of each global batch.

    Args:
        fields: any of `stack.data.decode.FIELDS` and `key`.
        workers: processes that read and decode ahead; 0 reads in this one.
        tokenize: makes `tokens` from captions where the shards hold none.

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
        pin_memory: bool = False,
        tokenize: Tokenize | None = None,
    ) -> None:
        self.stream, self.fields = stream, tuple(dict.fromkeys(("position", *fields)))
        self.workers = workers
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.truncated = 0
        read = [name for name in fields if name not in _ALWAYS]
        on_the_fly = "tokens" in read and tokenize is not None and bool(_lacking(stream, "tokens"))
        if on_the_fly:
            log.warning("the shards hold no token ids: captions are tokenised while training")
            read = [name for name in read if name not in ("tokens", "text")] + ["text"]
        for name in read:
            for folder in _lacking(stream, name):
                raise UserError(f"{folder}: {name}: not in these shards; {FIELDS[name].made_by}")
        _check_same_makers(stream, read)
        self._batches = _Batches(stream, read, tokenize if on_the_fly else None)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the stream's current place on."""
        loader = DataLoader(
            self._batches,
            sampler=_Steps(self.stream.step),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            collate_fn=_as_it_is,
            # DataLoader draws a seed for its workers: not from the training's own random state.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_trainer,
        )
        for item in loader:
            if isinstance(item, UserError):
                raise item
            batch, damage = item
            self.stream.report(damage)
            if batch.get("truncated") and not self.truncated:
                log.warning("captions longer than the tokenizer's limit are cut and counted")
            self.truncated += batch.get("truncated", 0)
            self.stream.step += 1
            yield {name: batch[name] for name in self.fields}

    def counts(self) -> dict[str, int]:
        """Damaged samples that were replaced and captions that were cut, since the start."""
        return {"bad_samples": self.stream.bad_samples, "truncated_captions": self.truncated}

    def state_dict(self) -> dict[str, Any]:
        """The stream's place, counted in batches that were handed out."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)


def _as_it_is(item: Any) -> Any:
    return item


def _lacking(stream: ShardStream, name: str) -> list[Path]:
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
