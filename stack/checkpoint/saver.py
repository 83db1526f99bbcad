"""Saving beside training: state is copied, and written while training goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from stack.checkpoint.commit import Contents, Keep, Peers, save


class Saver:
    """Saves checkpoints of one run, one after the other.

    Args:
        root: the run's checkpoints/ folder.
        peers: the ranks, in a group that nothing but saving uses.
        background: copy and return; else return when the checkpoint is committed.
    """

    def __init__(self, root: Path, peers: Peers, keep: Keep, *, background: bool) -> None:
        self.root, self.peers, self.keep = root, peers, keep
        self._pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: Future[Path] | None = None
        self._stager: DefaultStager | None = None

    @property
    def failed(self) -> bool:
        """Whether this rank knows that the last save went wrong; :meth:`wait` says how."""
        pending = self._pending
        return bool(pending and pending.done() and pending.exception())

    def save(self, step: int, contents: Contents) -> None:
        """Save a checkpoint, once the one before it is done; all ranks together.

        Raises:
            UserError: this one or the one before was refused, as :func:`commit.save` says.
        """
        self.wait()
        if self._pool is None:
            save(self.root, step, contents, peers=self.peers, keep=self.keep)
            return
        copied = self._copy(contents)
        self._pending = self._pool.submit(
            save, self.root, step, copied, peers=self.peers, keep=self.keep
        )

    def wait(self) -> None:
        """Return when the last save is committed; raises what it raised."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Let the last save end, however it ends."""
        if self._pool:
            self._pool.shutdown()

    def _copy(self, contents: Contents) -> Contents:
        """The contents on the CPU, in buffers that are kept from save to save (and pinned where
        they come from a GPU)."""
        on_gpu = torch.cuda.is_available()
        if self._stager is None:
            self._stager = DefaultStager(
                StagingOptions(
                    use_pinned_memory=on_gpu,
                    use_shared_memory=False,
                    use_async_staging=False,
                    use_non_blocking_copy=on_gpu,
                )
            )
        staged = self._stager.stage(
            {"tensors": dict(contents.tensors), "objects": dict(contents.objects)}
        )
        assert isinstance(staged, dict)
        return replace(contents, tensors=staged["tensors"], objects=staged["objects"])
