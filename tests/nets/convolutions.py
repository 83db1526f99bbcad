"""Layouts of what convolutions give; as a module, one rank of test_layout.py, under FSDP2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stack.nets.sd15 import SDDenoiser
from stack.parallel.collectives import ranks_of
from stack.parallel.fsdp import shard
from stack.parallel.mesh import Layout
from stack.train.build_algorithm import ENTRIES
from stack.util.exits import leave
from tests.nets.test_sd15 import inputs
from tests.tiny import tiny_denoiser


def of_dense_outputs(denoiser: SDDenoiser, size: int = 8) -> list[str]:
    """Names of convolutions whose outputs do not have channels last, in a forward and a pass for
    features, of those whose outputs can tell."""
    found: list[str] = []
    seen: list[str] = []

    def look(name: str, result: Tensor) -> None:
        seen.append(name)
        if not result.is_contiguous(memory_format=torch.channels_last):
            found.append(name)

    hooks = [
        part.register_forward_hook(lambda _module, _given, out, name=name: look(name, out))
        for name, part in denoiser.named_modules()
        if isinstance(part, nn.Conv2d)
    ]
    given = inputs(size=size)
    denoiser(*given).sum().backward()
    denoiser.features(*given)
    for hook in hooks:
        hook.remove()
    assert len(seen) > 30
    return found


def main() -> None:
    denoiser = tiny_denoiser(resolutions=(2,))
    with ranks_of("fsdp") as ranks:
        layout = Layout(ranks=ranks, backend="fsdp")
        shard(denoiser, denoiser.blocks(), layout.mesh, methods=ENTRIES)
        assert of_dense_outputs(denoiser, size=4) == []


if __name__ == "__main__":
    main()
    leave(0)
