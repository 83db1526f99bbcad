"""A tiny network that is handed from one layout to another through checkpoints:
``python -m tests.parallel.relay BACKEND SHARD_SIZE SOURCE TARGET DIGEST``, once per rank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stack.checkpoint import commit, read
from stack.nets.ema import EMA
from stack.parallel.collectives import Ranks, ranks_of
from stack.parallel.mesh import Layout
from stack.train.optim import adam_weights
from stack.util.exits import leave


def network() -> nn.Module:
    """Sizes that no number of ranks divides."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 3, bias=False), nn.Linear(3, 1))


def digest(weights: Any, average: EMA, ranks: Ranks) -> dict[str, Tensor]:
    """Weights, moments and average, whole and flat."""
    found: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = dict(weights.pieces())
    state = {f"moment.{name}": value for name, value in moments(weights).items()}
    rows = {f"weight.{n}": v for n, v in parts.items()} | state
    rows |= {f"average.{name}": value for name, value in average.tensors().items()}
    local = {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in rows.items()}
    pieces: dict[str, dict[int, Tensor]] = {}
    for row in ranks.gather({name: value.detach().clone() for name, value in local.items()}):
        for name, value in row.items():
            base, _, first = name.partition("@")
            pieces.setdefault(base, {})[int(first or 0)] = value.flatten()
    for base, cut in pieces.items():
        found[base] = torch.cat([cut[first] for first in sorted(cut)])
    return found


def moments(weights: Any) -> dict[str, Tensor]:
    """exp_avg and exp_avg_sq, named as the pieces of the weights are."""
    if not hasattr(weights, "zero"):
        prefix = f"{weights.name}.optimizer."
        state = {n.removeprefix(prefix): v for n, v in weights.tensors().items() if prefix in n}
        return {name: v for name, v in state.items() if "exp_avg" in name}
    from deepspeed.utils import safe_get_local_optimizer_state

    found = {}
    parameters = dict(weights.module.named_parameters())
    for piece, view in weights.pieces().items():
        name, _, first = piece.partition("@")
        for key in ("exp_avg", "exp_avg_sq"):
            if weights.stage == 3:
                value = safe_get_local_optimizer_state(parameters[name], key)[: len(view)]
            else:
                value = parameters[name]._hp_mapping.get_optim_state_fragment(key)
            found[f"{name}.{key}@{first}"] = value
    return found


def main(backend: str, shard_size: str, source: str, target: str, out: str) -> None:
    """Train four steps where there is no source, else load it; save, and write the digest."""
    with ranks_of(backend) as ranks:
        layout = Layout(ranks, backend, shard_size=int(shard_size) or None)
        module = network()
        weights = adam_weights(
            "net",
            module,
            layout,
            blocks=[module[0], module[2]],
            total=9,
            lr=0.05,
            betas=(0.5, 0.9),
            eps=1e-8,
            weight_decay=0.1,
            clip=0.5,
            warmup=2,
            decay="linear",
        )
        average = EMA(weights.pieces(), 0.7, weights.refresh)
        if Path(source).name == "none":
            for seed in range(4):
                x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
                weights.backward(module(x).square().mean())
                weights.clip()
                weights.step()
                average.update()
        else:
            read.load_into(Path(source), weights.tensors() | averages(average))
            weights.load_objects(Path(source))
        contents = commit.Contents(weights.tensors() | averages(average), weights.objects())
        commit.save(Path(target), 1, contents, peers=ranks, keep=commit.Keep())
        found = digest(weights, average, ranks)
        if ranks.first:
            torch.save(found, out)


def averages(average: EMA) -> dict[str, Tensor]:
    return {f"ema.{name}": value for name, value in average.tensors().items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
