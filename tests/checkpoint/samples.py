"""Checkpoints to read, and ways to damage one."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from stack.checkpoint import commit


def save(root: Path, step: int, tensors: dict[str, Tensor] | None = None, keep: int = 9) -> Path:
    tensors = {"a": torch.full((50_000,), float(step))} if tensors is None else tensors
    state = {"iteration": step, "nested": {"list": [1, "two", None]}}
    return commit.save(
        root, step, tensors, state, recipe="name: x\n", code_hash="c0", world_size=1, keep_last=keep
    )


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)
