"""Tensors on disk that need no second computing: whole or not there, and found by what made them.

A long evaluation is a row of blocks of 32 prompts. A block is made by one rank in one go, whatever
the number of ranks, so its bytes do not depend on that; and what is on disk is not made again.
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

from stack.evaluate.extractors import KnownExtractor
from stack.evaluate.features import extract
from stack.util.errors import UserError
from stack.util.files import write_atomic, write_json

BLOCK = 32
"""Prompts that one rank works on in one go."""


def digest_of(facts: Mapping[str, Any]) -> str:
    """SHA-256 of anything that JSON can hold; equal facts in any order have an equal one."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def blocks_of_rank(count: int, rank: int, world_size: int) -> list[range]:
    """The positions of ``count`` prompts that a rank works on: every world_size-th block."""
    starts = range(BLOCK * rank, count, BLOCK * world_size)
    return [range(start, min(start + BLOCK, count)) for start in starts]


class BlockStore:
    """Results of one evaluation, one file a block, in a folder named by what decides them.

    Args:
        root: holds the evaluations of many settings side by side.
        facts: everything that decides the results (weights, sampler, seed, prompts, extractors,
            precision), as JSON can hold it; not the batch size, nor the ranks.
    """

    def __init__(self, root: str | Path, facts: Mapping[str, Any], count: int) -> None:
        self.facts, self.count = dict(facts), count
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
        for block in blocks_of_rank(self.count, rank, world_size):
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
        return blocks_of_rank(self.count, 0, 1)

    def _path(self, block: range) -> Path:
        return self.folder / f"{block.start:07d}.safetensors"


def stored_features(
    folder: str | Path, extractor: KnownExtractor, images: Tensor, batch_size: int = BLOCK
) -> Tensor:
    """Features of uint8 pictures (N, 3, H, W), float32 (N, dim), from the folder if it has them."""
    content = hashlib.sha256(images.contiguous().cpu().numpy().data).hexdigest()
    facts = {"extractor": extractor.fingerprint, "shape": list(images.shape), "images": content}
    path = Path(folder) / f"{digest_of(facts)}.safetensors"
    if path.is_file():
        return _read(path)["features"]
    features = extract(extractor, images, batch_size).contiguous()
    write_atomic(path, save({"features": features}, {"facts": json.dumps(facts)}))
    return features


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and it is made anew") from None
