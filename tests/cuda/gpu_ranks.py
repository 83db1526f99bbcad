"""One rank of tests/cuda/test_cuda_fsdp.py: ``python -m tests.cuda.gpu_ranks KIND COMPILE``."""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from stack.nets.compilation import compile_blocks
from stack.nets.sd15 import SDDenoiser
from stack.parallel.adam import adam
from stack.parallel.fsdp import shard
from stack.train.build_algorithm import ENTRIES
from stack.util.exits import leave
from tests.cuda.gpu import CUDA
from tests.nets.feature_ranks import assert_one_result
from tests.nets.test_sd15 import SCHEDULE, inputs
from tests.tiny import tiny_unet

CODES = "exp_avg.codes"
"""Of a weight whose moments are in 8 bits."""


def wide_denoiser() -> SDDenoiser:
    """With weights that are large enough for moments in 8 bits."""
    return SDDenoiser(tiny_unet((64, 128)), SCHEDULE, "v_prediction", resolutions=(4, 2))


def trained(network: SDDenoiser, kind: str, device: torch.device, *, sharded: bool) -> list[Tensor]:
    """Weights after three steps."""
    optimizer = adam(kind, network.parameters(), sharded=sharded, fused=True, lr=1e-3)
    for _ in range(3):
        network(*(value.to(device) for value in inputs())).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    coded = [CODES in optimizer.moments(weight) for weight in network.parameters()]
    assert sum(coded) >= (20 if kind == "adamw8bit" else 0)
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in network.parameters()]


def assert_alike(kind: str, start: list[Tensor], found: list[Tensor], exact: list[Tensor]) -> None:
    """To rounding; with moments in 8 bits, to a part of the way that the weights have gone."""
    if kind == "adamw":
        for one, two in zip(exact, found, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-2, atol=2e-4)
    way, apart = (
        torch.cat([(a - b).flatten() for a, b in zip(exact, other, strict=True)]).norm()
        for other in (start, found)
    )
    assert apart <= 0.15 * way


def main(kind: str, compiled: bool) -> None:
    """FSDP2 over NCCL, on a mesh of the one GPU that is sure to be there."""
    torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    plain = wide_denoiser().to(CUDA)
    denoiser, start = copy.deepcopy(plain), [p.detach().clone() for p in plain.parameters()]
    if compiled:
        compile_blocks(denoiser.blocks())
    shard(denoiser, denoiser.blocks(), init_device_mesh("cuda", (1,)), methods=ENTRIES)
    assert_one_result(denoiser, CUDA)
    exact = trained(plain, "adamw", CUDA, sharded=False)
    assert_alike(kind, start, trained(denoiser, kind, CUDA, sharded=True), exact)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "compiled")
    leave(0)
