"""Checkpoints to read, and ways to damage one."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from stack.checkpoint import commit
from stack.checkpoint.commit import Contents, Keep
from stack.parallel.collectives import ALONE


def save(
    root: Path,
    step: int,
    tensors: dict[str, Tensor] | None = None,
    keep: int | Keep = 9,
    score: float | None = None,
) -> Path:
    tensors = {"a": torch.full((50_000,), float(step))} if tensors is None else tensors
    state = {"iteration": step, "nested": {"list": [1, "two", None]}}
    mark = {"code": "c0", "world_size": 1} | ({} if score is None else {"score": score})
    contents = Contents(tensors, {}, state, "name: x\n", mark)
    keep = Keep(keep) if isinstance(keep, int) else keep
    return commit.save(root, step, contents, peers=ALONE, keep=keep)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)
