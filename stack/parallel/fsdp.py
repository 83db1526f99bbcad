"""A trained network cut over ranks by PyTorch's FSDP2 (``parallel.backend: fsdp``).

Every parameter is a DTensor of which a rank holds a part; a block's are gathered before its
forward and its backward, and freed after. Gradients are reduced to the parts as soon as a
block's backward is done, on the last micro-batch of an iteration only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from stack.parallel.local import LocalWeights, make_dense


def shard(
    module: nn.Module,
    blocks: Iterable[nn.Module],
    mesh: DeviceMesh,
    *,
    methods: Sequence[str] = (),
    bf16: bool = False,
    offload: bool = False,
) -> None:
    """Cut a network's parameters over a mesh, in place; an optimizer is made afterwards.

    Args:
        blocks: parts of the module that are gathered one at a time; what is in none of them is
            gathered as one.
        mesh: (ranks,), or (replicas, ranks of a replica) for HSDP.
        methods: the module's entry points besides forward.
        bf16: gather in bfloat16; the parts and the reduction of gradients stay float32.
        offload: keep the parts in the CPU's memory.
    """
    make_dense(module)
    on_gpu = mesh.device_type == "cuda"
    options: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": True,
        # Inputs stay as they are: x0 is read from a float32 x_t, whatever the network runs in.
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if bf16 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=on_gpu) if offload else OffloadPolicy(),
    }
    for block in blocks:
        fully_shard(block, **options)
    fully_shard(module, **options)
    for method in methods:
        register_fsdp_forward_method(module, method)
    # The dtypes of gradients are taken from what requires one at the first forward. That may be
    # one through frozen weights, so let it be now.
    root(module)._get_fsdp_state()._lazy_init()


def root(module: nn.Module) -> FSDPModule:
    """A sharded module as what FSDP made of it."""
    assert isinstance(module, FSDPModule)
    return module


class ShardedWeights(LocalWeights):
    """A network after :func:`shard`.

    Args:
        micro_batches: backwards of an iteration; gradients are reduced in the last one.
    """

    def __init__(self, micro_batches: int, *args: Any, **options: Any) -> None:
        """Args: micro_batches, then those of LocalWeights."""
        super().__init__(*args, **options)
        self.micro_batches, self.backwards = micro_batches, 0

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient: to this rank's own until the last micro-batch, which reduces
        it to the parts."""
        self.backwards += 1
        root(self.module).set_requires_gradient_sync(self.backwards == self.micro_batches)
        super().backward(loss)

    def clip(self) -> Tensor:
        """Clip the gradient by its norm over all ranks; returns the norm before."""
        norm = super().clip()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @torch.no_grad()
    def _put(self, name: str, value: Tensor) -> None:
        weight = self.module.get_parameter(name)
        assert isinstance(weight, DTensor)
        # Every rank has read the whole value: nothing needs to be sent.
        whole = value.view(weight.shape).to(weight.device)
        cut = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.copy_(cut)

    def discard(self) -> None:
        """Clear the gradient."""
        self.backwards = 0
        super().discard()
