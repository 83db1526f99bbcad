"""One rank of the tests of parallel/zero.py: ``python -m tests.parallel.zero_ranks TASK ...``."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stack.fdistill.algorithm import Batch, FDistill
from stack.parallel.adam import AdamW
from stack.parallel.collectives import Ranks
from stack.parallel.local import LocalWeights
from stack.parallel.zero import ZeroWeights, zero_weights
from stack.util.exits import leave
from tests.fdistill.tiny_run import BATCH, batch_of, make

MAX_NORM = {"student": 0.5, "fake": 5.0, "heads": 0.1}
"""Norms of the fake score's gradient are above one and not to be clipped."""
NETWORKS = ("student", "fake", "heads")
CASES = [("teacher", 1), ("fake", 2), ("fake_joint", 2)]
"""Where features come from, and micro-batches; with bf16 or offload, the second alone."""
STEPS = 3


def lr_at(step: int) -> float:
    """A rate that changes from step to step."""
    return 1e-3 / (step + 1)


def build(
    weights: Callable[..., Any],
    source: str = "teacher",
    *,
    all_reduce_mean: Callable[[Tensor], Tensor] | None = None,
) -> FDistill:
    """Tiny networks under the real algorithm; ``weights`` as LocalWeights is."""
    options: dict[str, Any] = {"all_reduce_mean": all_reduce_mean} if all_reduce_mean else {}
    algorithm = make(feature_source=source, student_every=2, **options)
    for name in NETWORKS:
        module: nn.Module = getattr(algorithm, name)
        # A large eps: else Adam blows the rounding of gradients near zero up to a whole step.
        optimizer = AdamW(module.parameters(), lr=1.0, eps=1e-2, fused=True)
        trained = weights(name, module, optimizer, lr_at=lr_at, max_norm=MAX_NORM[name])
        setattr(algorithm, f"{name}_weights", trained)
    return algorithm


def part_of_batch(rank: int, world_size: int, micro: int) -> list[Batch]:
    """A rank's micro-batches."""
    whole = batch_of()
    values = (whole.positions, whole.x0, whole.c, whole.null)
    parts = [value.chunk(world_size)[rank].chunk(micro) for value in values]
    return [Batch(*row) for row in zip(*parts, strict=True)]


def plain(source: str) -> tuple[list[dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """Figures and weights of the same training in one process without sharding."""
    algorithm = build(LocalWeights, source)
    rows = [scalars(algorithm.iteration(i, [batch_of()])[0]) for i in range(STEPS)]
    return rows, {
        name: {key: p.detach().flatten() for key, p in getattr(algorithm, name).named_parameters()}
        for name in NETWORKS
    }


def scalars(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in figures.items() if not value.ndim}


class Job:
    """This rank, its networks and what can be asked of them."""

    def __init__(self, ranks: Ranks, stage: int, kind: str = "") -> None:
        self.ranks, self.stage, self.kind = ranks, stage, kind

    @property
    def bf16(self) -> bool:
        return self.kind == "bf16"

    def build(self, source: str = "teacher") -> FDistill:
        def sharded(name: str, *args: Any, **options: Any) -> ZeroWeights:
            options |= {"bf16": self.bf16, "offload": self.kind == "offload"}
            return ZeroWeights(self.ranks, name, *args, stage=self.stage, **options)

        algorithm = build(sharded, source, all_reduce_mean=self.ranks.all_reduce_mean)
        for name in NETWORKS:
            getattr(algorithm, name).bf16 = self.bf16
        return algorithm

    def iterate(self, algorithm: FDistill, iteration: int, micro: int = 1) -> dict[str, Tensor]:
        """Figures, scalars averaged over ranks."""
        batches = part_of_batch(self.ranks.rank, self.ranks.world_size, micro)
        figures, stepped = algorithm.iteration(iteration, batches)
        assert stepped
        mean = self.ranks.all_reduce_mean
        return {key: mean(value.detach()) for key, value in scalars(figures).items()}

    def whole(self, pieces: Mapping[str, Tensor], weights: ZeroWeights) -> dict[str, Tensor]:
        """Flattened parameters from the pieces of all ranks, which have to tile them."""
        found: dict[str, dict[int, Tensor]] = {}
        for part in self.ranks.gather({key: piece.clone() for key, piece in pieces.items()}):
            for key, piece in part.items():
                name, start = key.rsplit("@", 1)
                assert found.setdefault(name, {}).setdefault(int(start), piece) is piece, key
        sizes = {n: getattr(p, "ds_numel", p.numel()) for n, p in weights.module.named_parameters()}
        assert found.keys() == sizes.keys()
        for name, parts in found.items():
            ends = {start + len(piece) for start, piece in parts.items()}
            assert set(parts) ^ ends == {0, sizes[name]}, name
        return {
            name: torch.cat([parts[start] for start in sorted(parts)])
            for name, parts in found.items()
        }

    def state(self, weights: ZeroWeights) -> dict[str, Tensor]:
        """Weights, moments and step counter, whole."""
        pieces = weights.pieces()
        state = {f"weights.{k}": v for k, v in self.whole(pieces, weights).items()}
        for key in ("exp_avg", "exp_avg_sq"):
            moments = {name: self._beside(piece, weights, key) for name, piece in pieces.items()}
            state |= {f"{key}.{k}": v for k, v in self.whole(moments, weights).items()}
        counters = {float(s["step"]) for s in weights.zero.optimizer.state.values()}
        assert len(counters) == 1
        return state | {"step": torch.tensor(counters.pop())}

    def _beside(self, piece: Tensor, weights: ZeroWeights, key: str) -> Tensor:
        """The part of a moment that belongs to a piece."""
        for flat, state in weights.zero.optimizer.state.items():
            if flat.untyped_storage().data_ptr() == piece.untyped_storage().data_ptr():
                offset = piece.storage_offset() - flat.storage_offset()
                return state[key][offset : offset + len(piece)]
        raise AssertionError(key)

    def save(self, algorithm: FDistill, folder: Path) -> None:
        """Write what the engines would, below ``folder``/<network>/."""
        for name in NETWORKS:
            for path, value in trained(algorithm, name).objects().items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                torch.save(value, folder / path)
        self.ranks.barrier()

    def load(self, algorithm: FDistill, folder: Path, steps: Mapping[str, int]) -> None:
        for name in NETWORKS:
            weights = trained(algorithm, name)
            weights.load_objects(folder)
            weights.steps = steps[name]


def trained(algorithm: FDistill, name: str) -> ZeroWeights:
    return getattr(algorithm, f"{name}_weights")


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    wrong = [key for key in one if not torch.equal(one[key], other[key])]
    assert not wrong, wrong[:3]


def states(job: Job, algorithm: FDistill) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name in NETWORKS
        for key, value in job.state(trained(algorithm, name)).items()
    }


# Tasks.


def train(job: Job, folder: Path) -> None:
    """The real algorithm; figures and weights for the test to compare."""
    for source, micro in {"": CASES[1:], "every": CASES[:1]}.get(job.kind, CASES[1:2]):
        algorithm = job.build(source)
        rows = [job.iterate(algorithm, i, micro) for i in range(STEPS)]
        weights = {n: trained(algorithm, n) for n in NETWORKS}
        whole = {n: job.whole(w.pieces(), w) for n, w in weights.items()}
        assert [w.steps for w in weights.values()] == [1, STEPS, STEPS]
        if job.ranks.first:
            kind = "" if job.kind == "every" else job.kind
            torch.save((rows, whole), folder / f"{source}{kind}.pt")


def discard(job: Job, folder: Path) -> None:
    """An iteration that is not finite leaves no trace, whatever it was that was not."""
    untouched, broken = job.build("fake"), job.build("fake")
    for algorithm in (untouched, broken):
        job.iterate(algorithm, 0, 2)
    batches = part_of_batch(job.ranks.rank, job.ranks.world_size, 2)
    if job.ranks.rank == job.ranks.world_size - 1:
        batches[0].x0[0, 0, 0, 0] = float("nan")
    before = states(job, broken)
    figures, stepped = broken.iteration(1, batches)
    assert not stepped
    assert not figures["grad/heads"].isfinite()
    equal(before, states(job, broken))
    for iteration in (1,):
        one, other = (job.iterate(a, iteration, 2) for a in (untouched, broken))
        equal(one, other)
    equal(states(job, untouched), states(job, broken))


def refresh(job: Job, folder: Path) -> None:
    """Weights written through the pieces are those that the forward uses, in both precisions."""
    batch = batch_of()
    one, other = job.build(), job.build()
    job.iterate(one, 1)
    for name, piece in (source := trained(other, "student")).pieces().items():
        piece.copy_(trained(one, "student").pieces()[name])
    source.refresh()
    with torch.no_grad():
        x, y = (a.student(batch.x0, batch.positions, batch.c) for a in (one, other))
    assert torch.equal(x, y)


def sharding(job: Job, folder: Path) -> None:
    """Each rank holds its share of optimizer state and, in stage 3, of the weights."""
    algorithm = job.build()
    job.iterate(algorithm, 1)
    for name in NETWORKS:
        weights = trained(algorithm, name)
        parameters = list(weights.module.parameters())
        sizes = [getattr(p, "ds_numel", p.numel()) for p in parameters]
        slack = len(sizes) if job.stage == 3 else 2
        for state in weights.zero.optimizer.state.values():
            assert state["exp_avg"].numel() <= sum(sizes) / job.ranks.world_size + slack
        if job.stage == 3:
            assert sum(p.numel() for p in parameters) == 0
            held = sum(p.ds_tensor.numel() for p in parameters)
            assert held <= sum(sizes) / job.ranks.world_size + slack


def save(job: Job, folder: Path) -> None:
    """A checkpoint and what follows it; loading into fresh engines, the same follows. The student
    has not stepped yet."""
    algorithm = job.build()
    job.iterate(algorithm, 0)
    job.save(algorithm, folder / f"step{job.kind}")
    before = states(job, algorithm)
    steps = {name: trained(algorithm, name).steps for name in NETWORKS}
    statistics = copy.deepcopy(algorithm.ratio.normalizer.state_dict())
    job.iterate(algorithm, 3)
    fresh = job.build()
    job.load(fresh, folder / f"step{job.kind}", steps)
    fresh.ratio.normalizer.load_state_dict(statistics)
    equal(before, states(job, fresh))
    job.iterate(fresh, 3)
    equal(states(job, algorithm), states(job, fresh))
    if job.ranks.first:
        torch.save(before, folder / f"state{job.kind}.pt")
        for name in NETWORKS:
            for key, value in zero_weights(folder / f"step{job.kind}" / name):
                assert value.dtype == torch.float32
                assert torch.equal(value.flatten(), before[f"{name}.weights.{key}"]), key


def load(job: Job, folder: Path) -> None:
    """A checkpoint of another number of ranks."""
    listing = sorted(folder.rglob("*"))
    times = [path.stat().st_mtime_ns for path in listing]
    fresh = job.build()
    job.load(fresh, folder / f"step{job.kind}", {"student": 0, "fake": 1, "heads": 1})
    equal(torch.load(folder / f"state{job.kind}.pt"), states(job, fresh))
    assert sorted(folder.rglob("*")) == listing
    assert [path.stat().st_mtime_ns for path in listing] == times[: len(listing)]
    job.iterate(fresh, 3)


TASKS = {task.__name__: task for task in (train, discard, refresh, sharding, save, load)}


def main(stage: str, folder: str, *names: str) -> None:
    assert BATCH % int(os.environ["WORLD_SIZE"]) == 0
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    for name in names:
        task, _, kind = name.partition(":")
        TASKS[task](Job(ranks, int(stage), kind), Path(folder))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
