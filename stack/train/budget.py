"""Arithmetic of a distillation on many GPUs: memory by part, bytes sent, time.

All from counts of parameters, FLOPs and activations; docs/parallel.md has the formulas of what is
held and sent.
"""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT, _HALF = 4, 2
_MOMENTS = {
    "adamw": 8.0,
    "adamw8bit": 2 + 8 / 256,
    "paged_adamw8bit": 2 + 8 / 256,
    "adamw8bit, fsdp": 2 + 8 / 64,
}
"""Bytes of an optimizer's state for each parameter; blocks of 256 share a scale for each moment,
of 64 with fsdp."""
_SAMPLE_BYTES = 4 * 64 * 64 * 2 + 77 * 2 + 3 * 512
"""Read for a sample of 64x64 latents: latent.npy, tokens.npy and their tar headers."""
_LIBRARIES = 2 << 30
"""CUDA's context, NCCL's buffers, and what the allocator cannot use."""


@dataclass(frozen=True)
class Gpu:
    """Bytes of memory, dense FLOP/s in bfloat16 and float32 (TF32 off), and bytes/s that one sends
    to others of its node and beyond, as its vendor states them."""

    memory: int
    bf16: float
    fp32: float
    node: float
    network: float


GPUS = {
    "a100-40gb": Gpu(40 << 30, 312e12, 19.5e12, 300e9, 25e9),
    "a100-80gb": Gpu(80 << 30, 312e12, 19.5e12, 300e9, 25e9),
    "h100": Gpu(80 << 30, 989e12, 67e12, 450e9, 50e9),
    "h200": Gpu(141 << 30, 989e12, 67e12, 450e9, 50e9),
    "b200": Gpu(180 << 30, 2250e12, 80e12, 900e9, 50e9),
    "l40s": Gpu(48 << 30, 362e12, 91e12, 32e9, 25e9),
    "rtx4090": Gpu(24 << 30, 165e12, 82e12, 32e9, 12e9),
    "rtx3090": Gpu(24 << 30, 71e12, 35e12, 32e9, 12e9),
}


@dataclass(frozen=True)
class Network:
    """Parameters of a trained network, the same of its largest block, the bytes of optimizer state
    for each, and how often an iteration gathers it where it is cut over ranks: (when the student
    moves, when the critics alone do)."""

    parameters: int
    block: int
    optimizer: str
    gathers: tuple[int, int]
    moves: tuple[bool, bool]


@dataclass(frozen=True)
class Work:
    """One iteration of a run.

    Args:
        trained: student, fake score, heads. teacher, frozen: parameters of the teacher's UNet and
            of other frozen parts.
        averages: of the student. activations: bytes at the peak of a micro-batch.
        flops: of all samples, when the student moves and when the critics alone do.
        student_every: k. alternate: critics rest when the student moves.
        batch: samples. micro_batches: of a rank.
    """

    trained: tuple[Network, ...]
    teacher: int
    frozen: int
    averages: int
    activations: int
    flops: tuple[float, float]
    student_every: int
    batch: int
    micro_batches: int


@dataclass(frozen=True)
class Place:
    """Where it runs: `ranks` GPUs, `node` of them in a node, `shard` that share one copy."""

    gpu: Gpu
    ranks: int
    node: int
    backend: str
    shard: int
    bf16: bool
    teacher_sharded: bool
    offload: bool


def memory(work: Work, place: Place) -> dict[str, int]:
    """Bytes of one GPU, by part."""
    found: dict[str, float] = dict.fromkeys(
        ("weights", "gradients", "optimizer", "averages", "gathered"), 0.0
    )
    cut = _cut(place)
    if place.backend == "fsdp" and work.micro_batches > 1:
        cut["gradients"] = 1  # Whole until the last micro-batch reduces them.
    for network in work.trained:
        size = network.parameters
        found["weights"] += size * _FLOAT / cut["weights"] if not place.offload else 0
        if place.backend.startswith("zero"):
            forward = _HALF if place.bf16 else _FLOAT
            found["weights"] += size * forward / (cut["gradients"] if _stage(place) == 3 else 1)
        found["gradients"] += size * _FLOAT / cut["gradients"]
        moments = size * _MOMENTS[network.optimizer] / cut["optimizer"]
        paged = network.optimizer.startswith("paged")
        found["optimizer"] += 0 if place.offload or paged else moments
    if place.backend == "fsdp" and place.shard > 1:
        low = _HALF if place.bf16 else _FLOAT
        found["gathered"] = 2 * max(n.block for n in work.trained) * (low + _FLOAT)
    student = work.trained[0].parameters
    found["averages"] = work.averages * student * _FLOAT / cut["optimizer"]
    teacher = work.teacher * (_HALF if place.bf16 else _FLOAT)
    found["teacher"] = teacher / (place.ranks if place.teacher_sharded else 1)
    found["text and autoencoder"] = work.frozen * _FLOAT
    found["activations"] = work.activations
    found["libraries"] = _LIBRARIES
    return {name: round(value) for name, value in found.items()}


def _stage(place: Place) -> int:
    return int(place.backend[-1]) if place.backend.startswith("zero") else 0


def _cut(place: Place) -> dict[str, int]:
    """Over how many ranks each kind of state is divided."""
    stage, all_ranks = _stage(place), place.ranks
    if stage:
        return {
            "weights": all_ranks,  # The float32 ones, beside those of the forward.
            "gradients": all_ranks if stage >= 2 else 1,
            "optimizer": all_ranks,
        }
    part = place.shard if place.backend == "fsdp" else 1
    return dict.fromkeys(("weights", "gradients", "optimizer"), part)


def sent(work: Work, place: Place) -> tuple[float, float]:
    """Bytes that a GPU sends in an iteration in which the student moves, and in one in which the
    critics alone do, by the best algorithms (rings)."""
    totals = [0.0, 0.0]
    for network in work.trained:
        for turn in (0, 1):
            totals[turn] += _sent_for(network, turn, work, place)
    return totals[0], totals[1]


def _sent_for(network: Network, turn: int, work: Work, place: Place) -> float:
    size, n, stage = network.parameters, place.ranks, _stage(place)
    reduced = size * _FLOAT * (n - 1) / n if network.moves[turn] else 0.0
    forward = _HALF if place.bf16 else _FLOAT
    if stage:
        times = work.micro_batches if stage >= 2 else 1
        if stage < 3:
            gathered = size * forward * (n - 1) / n if network.moves[turn] else 0.0
        else:
            gathered = network.gathers[turn] * work.micro_batches * size * forward * (n - 1) / n
        return reduced * times + gathered
    if place.backend == "fsdp":
        part, copies = place.shard, n // place.shard
        gathers = network.gathers[turn] * work.micro_batches
        gathered = gathers * size * forward * (part - 1) / part
        scattered = size * _FLOAT * (part - 1) / part if network.moves[turn] else 0.0
        between = 2 * size / part * _FLOAT * (copies - 1) / copies if network.moves[turn] else 0.0
        return gathered + scattered + between
    return 2 * reduced if n > 1 else 0.0


def seconds(work: Work, place: Place, share: float) -> tuple[float, float]:
    """Of an iteration with and without the student, if GPUs reach `share` of their dense rate and
    what is sent does not overlap: across nodes at the network's rate, which each GPU has."""
    rate = (place.gpu.bf16 if place.bf16 else place.gpu.fp32) * share * place.ranks
    link = place.gpu.network if place.ranks > place.node else place.gpu.node
    with_student, without = (
        flops / rate + moved / link
        for flops, moved in zip(work.flops, sent(work, place), strict=True)
    )
    return with_student, without


def average(work: Work, pair: tuple[float, float]) -> float:
    """Over a cycle of k iterations, in one of which the student moves."""
    return (pair[0] + (work.student_every - 1) * pair[1]) / work.student_every


def checkpoint_bytes(work: Work) -> int:
    """Of one checkpoint: weights, moments, averages."""
    weights = sum(n.parameters * (_FLOAT + _MOMENTS[n.optimizer]) for n in work.trained)
    return round(weights + work.averages * work.trained[0].parameters * _FLOAT)


def read_bytes(work: Work, seconds_per_iteration: float) -> float:
    """Bytes a second that all ranks read."""
    return work.batch * _SAMPLE_BYTES / seconds_per_iteration
