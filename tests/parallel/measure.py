"""What one rank holds and sends in an iteration: ``python -m tests.parallel.measure RECIPE OUT``,
started once per rank."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from stack.config.load import load_recipe
from stack.parallel.collectives import ranks_of
from stack.parallel.fsdp import ShardedWeights
from stack.parallel.memory import PeakBytes, Traffic
from stack.train.build_distill import build_distill
from stack.util.exits import leave


def held(task: Any) -> Iterator[Tensor]:
    """What is there between iterations, when gradients are cleared; some of it twice."""
    algorithm = task.algorithm
    for network in (algorithm.student, algorithm.fake, algorithm.heads, algorithm.teacher):
        yield from network.parameters()
    yield from task.tensors().values()
    for weights in task.weights:
        if hasattr(weights, "zero"):
            yield from held_by_zero(weights)


def held_by_zero(weights: Any) -> Iterator[Tensor]:
    """DeepSpeed's parts: of what the forward uses, of the float32 weights, of the moments."""
    if weights.stage == 3:
        yield from (parameter.ds_tensor for parameter in weights.module.parameters())
    for flat in weights._flats():
        yield flat
        yield from weights.optimizer.moments(flat).values()


def cut(weights: Any) -> dict[str, int]:
    """Elements of a network: in all, in this rank's weights, in its optimizer."""
    if hasattr(weights, "zero"):
        whole = sum(weights._sizes().values())
        forward = sum(
            p.ds_tensor.numel() if weights.stage == 3 else p.numel()
            for p in weights.module.parameters()
        )
        state = weights.zero.optimizer.state.values()
    else:
        sharded = isinstance(weights, ShardedWeights)
        whole = sum(p.numel() for p in weights.module.parameters())
        forward = sum((p.to_local() if sharded else p).numel() for p in weights.module.parameters())
        state = weights.optimizer.state.values()
    moments = [row["exp_avg" if "exp_avg" in row else "exp_avg.codes"] for row in state]
    local = [m.to_local() if hasattr(m, "to_local") else m for m in moments]
    return {"whole": whole, "forward": forward, "moments": sum(m.numel() for m in local)}


def main(recipe_file: str, out: str) -> None:
    """Two iterations to make all state; then what is sent is measured over a cycle of k iterations,
    in one of which the student moves, and the peak in the next."""
    recipe = load_recipe(recipe_file)
    with ranks_of(recipe.parallel.backend) as ranks:
        job = build_distill(recipe, ranks)
        for iteration in range(2):
            job.task.iteration(iteration, job.source.take())
        cycle = [job.source.take() for _ in range(recipe.student_every)]
        with Traffic() as traffic:
            for iteration, batches in enumerate(cycle, 2):
                job.task.iteration(iteration, batches)
        batches = job.source.take()
        with PeakBytes(held(job.task)) as memory:
            start = memory.live
            job.task.iteration(2 + len(cycle), batches)
        found = {
            "peak": memory.peak,
            "held": start,
            "sent": dict(traffic.sent),
            "calls": dict(traffic.calls),
            "cut": {weights.name: cut(weights) for weights in job.task.weights},
        }
        rows = ranks.gather(found)
        if ranks.first:
            Path(out).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
