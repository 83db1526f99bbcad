"""One rank of test_feature_paths.py: ``python -m tests.nets.feature_ranks MODE COMPILE``."""

from __future__ import annotations

import copy
import sys

import torch

from stack.nets.compilation import compile_blocks
from stack.nets.recompute import recompute
from stack.nets.sd15 import SDDenoiser
from stack.parallel.collectives import ranks_of
from stack.parallel.fsdp import shard
from stack.parallel.local import make_dense
from stack.parallel.mesh import Layout
from stack.train.build_algorithm import ENTRIES
from stack.util.exits import leave
from tests.nets.test_sd15 import inputs
from tests.tiny import tiny_denoiser

CPU = torch.device("cpu")


def assert_one_result(denoiser: SDDenoiser, device: torch.device = CPU) -> None:
    """x0 and features of one pass are those of two, bit for bit, with gradient and without."""
    given = [value.to(device) for value in inputs()]
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            x0, features = denoiser.x0_and_features(*given)
            alone = denoiser.features(*given)
        assert all(map(torch.equal, features, alone))
        assert all(feature.requires_grad == gradient for feature in features)
    with torch.no_grad():
        assert torch.equal(x0, denoiser(*given))


def main(mode: str, compiled: bool) -> None:
    denoiser = tiny_denoiser()
    whole = copy.deepcopy(denoiser)
    make_dense(whole)  # As shard does; in another layout convolutions round otherwise.
    recompute(denoiser.blocks(), mode)
    if compiled:
        compile_blocks(denoiser.blocks())
    with ranks_of("fsdp") as ranks:
        layout = Layout(ranks=ranks, backend="fsdp")
        shard(denoiser, denoiser.blocks(), layout.mesh, methods=ENTRIES)
        assert_one_result(denoiser)
        with torch.no_grad():
            x0, expected = denoiser(*inputs()), whole(*inputs())
        if compiled:
            torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(x0, expected)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "compiled")
    leave(0)
