"""One rank of tests/cuda/test_cuda_fsdp.py: ``python -m tests.cuda.gpu_ranks KIND COMPILE``."""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from stack.nets.compilation import compile_blocks
from stack.parallel.adam import adam
from stack.parallel.fsdp import shard
from stack.train.build_algorithm import ENTRIES
from stack.util.exits import leave
from tests.cuda.gpu import CUDA
from tests.nets.feature_ranks import assert_one_result
from tests.nets.test_sd15 import inputs
from tests.tiny import tiny_denoiser


def trained(network: torch.nn.Module, kind: str, *, sharded: bool) -> list[Tensor]:
    """Weights after three steps."""
    optimizer = adam(kind, network.parameters(), sharded=sharded, fused=True, lr=1e-3)
    for _ in range(3):
        network(*(value.to(CUDA) for value in inputs())).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.full_tensor() if sharded else p for p in network.parameters()]


def main(kind: str, compiled: bool) -> None:
    """FSDP2 over NCCL, on a mesh of the one GPU that is sure to be there."""
    torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    plain = tiny_denoiser().to(CUDA)
    denoiser = copy.deepcopy(plain)
    if compiled:
        compile_blocks(denoiser.blocks())
    shard(denoiser, denoiser.blocks(), init_device_mesh("cuda", (1,)), methods=ENTRIES)
    assert_one_result(denoiser, CUDA)
    expected, found = trained(plain, "adamw", sharded=False), trained(denoiser, kind, sharded=True)
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-2, atol=2e-4)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "compiled")
    leave(0)
