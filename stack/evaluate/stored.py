"""Tensors on disk that need no second computing: whole or not there, and found by what made them.

A long evaluation is a row of blocks of as many prompts. A block is made by one rank in one go,
whatever the number of ranks, so its bytes do not depend on that; and what is on disk is not made
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from stack.util.errors import UserError
from stack.util.files import write_atomic, write_json


def digest_of(facts: Mapping[str, Any]) -> str:
    """SHA-256 of anything that JSON can hold; equal facts in any order have an equal one."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def blocks_of_rank(count: int, block: int, rank: int, world_size: int) -> list[range]:
    """The positions of ``count`` prompts that a rank works on: every world_size-th block."""
    starts = range(block * rank, count, block * world_size)
    return [range(start, min(start + block, count)) for start in starts]


class BlockStore:
    """Results of one evaluation, one file a block, in a folder named by what decides them.

    Args:
        root: holds the evaluations of many settings side by side.
        facts: everything that decides the results (weights, sampler, seed, prompts, extractors,
            precision), as JSON can hold it; not the batch size, nor the ranks.
        count: of prompts. block: how many of them are made in one go.
    """

    def __init__(self, root: str | Path, facts: Mapping[str, Any], count: int, block: int) -> None:
        self.facts, self.count, self.block = {**facts, "block": block}, count, block
        self.folder = Path(root) / digest_of(self.facts)[:16]

    def run(
        self,
        make: Callable[[range], Mapping[str, Tensor]],
        *,
        rank: int = 0,
        world_size: int = 1,
        on_block: Callable[[range], None] = lambda block: None,
    ) -> None:
        """Make this rank's blocks that are not there yet.

        Args:
            make: from positions to tensors with a row for each. on_block: called after every block,
                those that were there already included.
        """
        if rank == 0:
            write_json(self.folder / "facts.json", self.facts)
        for block in blocks_of_rank(self.count, self.block, rank, world_size):
            if not self._path(block).is_file():
                rows = {name: value.contiguous() for name, value in make(block).items()}
                write_atomic(self._path(block), save(rows))
            on_block(block)

    def missing(self) -> list[range]:
        """Blocks that no rank has made yet."""
        return [block for block in self._blocks() if not self._path(block).is_file()]

    def read(self) -> dict[str, Tensor]:
        """All results in the order of the prompts, each tensor's blocks joined.

        Raises:
            UserError: a block is missing or damaged.
        """
        if missing := self.missing():
            raise UserError(f"{self.folder}: {len(missing)} blocks missing; run it to its end")
        parts = [_read(self._path(block)) for block in self._blocks()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _blocks(self) -> list[range]:
        return blocks_of_rank(self.count, self.block, 0, 1)

    def _path(self, block: range) -> Path:
        return self.folder / f"{block.start:07d}.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and it is made anew") from None
