"""Optimizers: their moments before a step, in a checkpoint, and in 8 bits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stack.parallel.adam import Adam, adam
from stack.util.errors import UserError

KINDS = ["adamw", "adamw8bit", "adamw8bit, fsdp"]
"""The last is torchao's, which takes whole tensors as well as parts."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64))


def make(kind: str, module: nn.Module) -> Adam:
    name, _, sharded = kind.partition(", ")
    options = {"sharded": bool(sharded), "fused": False, "lr": 1e-2, "weight_decay": 0.1}
    return adam(name, module.parameters(), **options)


def train(module: nn.Module, optimizer: Adam, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
        module(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_moments_carry_all_that_a_further_step_needs(kind: str) -> None:
    module = network()
    optimizer = make(kind, module)
    train(module, optimizer, range(4))
    resumed = copy.deepcopy(module)
    other = make(kind, resumed)
    for old, new in zip(module.parameters(), resumed.parameters(), strict=True):
        stored, fresh = optimizer.moments(old), other.moments(new)
        assert set(stored) == set(fresh)
        for name, value in stored.items():
            fresh[name].copy_(value)
    train(module, optimizer, range(4, 8))
    train(resumed, other, range(4, 8))
    for one, two in zip(module.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_eight_bits_hold_a_quarter_and_train_nearly_the_same() -> None:
    sizes, weights = {}, {}
    for kind in KINDS:
        module = network()
        optimizer = make(kind, module)
        train(module, optimizer, range(5))
        weight = module[0].weight
        sizes[kind] = sum(value.nbytes for value in optimizer.moments(weight).values())
        weights[kind] = weight.detach()
    moved = weights["adamw"] - network()[0].weight.detach()
    for kind in KINDS[1:]:
        assert sizes[kind] < 0.3 * sizes["adamw"]
        assert (weights[kind] - weights["adamw"]).norm() < 0.1 * moved.norm()


def test_paged_moments_are_not_for_fsdp() -> None:
    with pytest.raises(UserError, match="paged_adamw8bit does not go with fsdp"):
        adam("paged_adamw8bit", network().parameters(), sharded=True, fused=False, lr=1e-2)
