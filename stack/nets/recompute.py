"""Activation checkpointing: what a block computes a second time in the backward rather than keeps
(Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._efficient_attention_forward.default,
    _aten._flash_attention_forward.default,
}
"""Operators whose results `selective` keeps: those that cost most of the time. The last two are
torch's kernels as xformers calls them."""
_KEPT_OF = ("xformers", "xformers_flash", "xformers_flash3", "flash_attn_3")
"""And all operators of these libraries, one of which is xformers' attention on each kind of GPU."""


def _policy(_: Any, op: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    keep = op in _KEPT or op.namespace in _KEPT_OF
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def recompute(blocks: Iterable[nn.Module], mode: str) -> None:
    """Set how much of their activations blocks keep, in place.

    Args:
        mode: none: all; selective: the results of matrix products, convolutions and attention, and
            what lies between them is computed again; full: their inputs only.
    """
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, **options)  # type: ignore[method-assign]
