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
_LIBRARIES = 2 << 30
"""CUDA's context, NCCL's buffers, and what the allocator cannot use."""


@dataclass(frozen=True)
class Gpu:
    """Bytes of memory that CUDA gives out, which is less than the vendor's figure; dense FLOP/s in
    bfloat16 and float32 (TF32 off), and bytes/s that one sends to others of its node and, by the
    network's port that is its own, beyond, as its vendor states them."""

    memory: int
    bf16: float
    fp32: float
    node: float
    network: float


def _gib(size: float) -> int:
    return int(size * 2**30)


GPUS = {
    "a100-40gb": Gpu(_gib(39.4), 312e12, 19.5e12, 300e9, 25e9),
    "a100-80gb": Gpu(_gib(79.1), 312e12, 19.5e12, 300e9, 25e9),
    "h100": Gpu(_gib(79.1), 989e12, 67e12, 450e9, 50e9),
    "h200": Gpu(_gib(139.7), 989e12, 67e12, 450e9, 50e9),
    "b200": Gpu(_gib(178.3), 2250e12, 80e12, 900e9, 50e9),
    "l40s": Gpu(_gib(44.4), 362e12, 91e12, 32e9, 25e9),
    "rtx4090": Gpu(_gib(23.5), 165e12, 82e12, 32e9, 12e9),
    "rtx3090": Gpu(_gib(23.5), 71e12, 35e12, 32e9, 12e9),
}
"""H100 and H200 are those of HGX boards; other forms of them are slower."""


_CALLED = {
    "A100-SXM4-40GB": "a100-40gb",
    "A100-PCIE-40GB": "a100-40gb",
    "A100-SXM4-80GB": "a100-80gb",
    "A100 80GB PCIe": "a100-80gb",
    "H100 80GB HBM3": "h100",
    "H200": "h200",
    "B200": "b200",
    "L40S": "l40s",
    "GeForce RTX 4090": "rtx4090",
    "GeForce RTX 3090": "rtx3090",
}
"""What CUDA calls them, behind the vendor's name. A word more is another card: H200 NVL, RTX 4090
D, RTX 4090 Laptop GPU, a part of one by MIG; so is GB200."""


def gpu_named(device: str) -> Gpu | None:
    """The one of GPUS that CUDA calls so; None for any other, whose rates are not known."""
    kind = _CALLED.get(device.removeprefix("NVIDIA "))
    return GPUS[kind] if kind else None


@dataclass(frozen=True)
class Network:
    """A trained network. What has two values has one for iterations in which the student moves, and
    one for those in which the critics alone do.

    Args:
        parameters, block: of it all, and of its largest block.
        optimizer: kind of it, which decides the bytes of its state.
        gathered: parameters that a micro-batch gathers where they are cut over ranks, those that it
            gathers twice counted twice.
        reached: parameters that a micro-batch's backwards come to, those of two of them counted
            twice; none if the network does not move.
    """

    parameters: int
    block: int
    optimizer: str
    gathered: tuple[int, int]
    reached: tuple[int, int]


@dataclass(frozen=True)
class Work:
    """One iteration of a run.

    Args:
        trained: student, fake score, heads. teacher, frozen: parameters of the teacher's network
            and of other frozen parts.
        averages: of the student. activations: bytes at the peak of a micro-batch beyond weights
            and gradients. drawn: bytes beyond weights while a sample grid is made, without the
            average's copy.
        flops: of all samples, when the student moves and when the critics alone do.
        text_flops: of all samples' captions, in float32, in each iteration.
        student_every: k, iterations of which the student moves in one.
        batch: samples. micro_batches: of a rank. sample_bytes: read for a sample.
        consulted: parameters of the teacher that a micro-batch uses, those used twice counted
            twice, when the student moves and when the critics alone do: what is gathered of a
            teacher that is cut over ranks.
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
    sample_bytes: int
    drawn: int = 0
    consulted: tuple[int, int] = (0, 0)
    text_flops: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where it runs: `ranks` GPUs, `node` of them in a node, `shard` that share one copy of what is
    cut over ranks."""

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
    on_host, reduced_to_host = place.offload, place.offload and place.backend == "fsdp"
    if place.backend == "fsdp" and work.micro_batches > 1:
        # Whole, and here, until the last micro-batch reduces them.
        cut["gradients"], reduced_to_host = 1, False
    for network in work.trained:
        size = network.parameters
        found["weights"] += size * _FLOAT / cut["weights"] if not on_host else 0
        if place.backend.startswith("zero"):
            forward = _HALF if place.bf16 else _FLOAT
            found["weights"] += size * forward / (cut["gradients"] if _stage(place) == 3 else 1)
        found["gradients"] += size * _FLOAT / cut["gradients"] if not reduced_to_host else 0
        moments = size * _MOMENTS[network.optimizer] / cut["optimizer"]
        paged = network.optimizer.startswith("paged")
        found["optimizer"] += 0 if on_host or paged else moments
    if place.backend == "fsdp" and place.shard > 1:
        low = _HALF if place.bf16 else _FLOAT
        found["gathered"] = 2 * max(n.block for n in work.trained) * (low + _FLOAT)
    average = work.trained[0].parameters * _FLOAT / cut["optimizer"] if not on_host else 0
    found["averages"] = work.averages * average
    teacher: float = work.teacher * (_HALF if place.bf16 else _FLOAT)
    if place.teacher_sharded:
        teacher = 0 if on_host else teacher / place.shard
    found["teacher"] = teacher
    found["text and autoencoder"] = work.frozen * _FLOAT
    found["activations"] = work.activations
    # Grids are drawn between iterations, with the average in the weights' place and those aside.
    drawn = work.drawn + (average if work.averages else 0)
    found["sample grids"] = max(0.0, drawn - found["gradients"] - found["activations"])
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


@dataclass(frozen=True)
class Sent:
    """Bytes that a GPU sends in a collective: to GPUs of its node, and to other nodes."""

    inside: float = 0.0
    across: float = 0.0

    def seconds(self, gpu: Gpu) -> float:
        """Both ways are busy at once."""
        return max(self.inside / gpu.node, self.across / gpu.network)


def ring(size: float, ranks: int, node: int, apart: int = 1) -> Sent:
    """A gathering or a reduction of `size` bytes by the best algorithm: (ranks - 1) / ranks of it
    passes every GPU. Of the hops along a ring through the GPUs of node after node, one a node
    leaves it; there are as many rings as a node has ports, so that each bears its part.

    Args:
        node: GPUs of a node. apart: distance of two neighbours in the order of ranks.
    """
    moved = size * (ranks - 1) / ranks
    near = max(1, min(ranks, node // apart))
    across = moved / near if ranks > near else 0.0
    return Sent(moved - across, across)


def sent(work: Work, place: Place) -> tuple[list[Sent], list[Sent]]:
    """What a GPU sends in an iteration in which the student moves, and in one in which the
    critics alone do, by kind of collective."""
    with_student, without = (
        [part for network in work.trained for part in _sent_for(network, turn, work, place)]
        + _teachers(turn, work, place)
        for turn in (0, 1)
    )
    return with_student, without


def total(parts: list[Sent]) -> float:
    """Bytes of them all."""
    return sum(part.inside + part.across for part in parts)


def _teachers(turn: int, work: Work, place: Place) -> list[Sent]:
    """Gatherings of a teacher that is cut over ranks."""
    if not place.teacher_sharded:
        return []
    size = work.consulted[turn] * work.micro_batches * (_HALF if place.bf16 else _FLOAT)
    return [ring(size, place.shard, place.node)]


def _sent_for(network: Network, turn: int, work: Work, place: Place) -> list[Sent]:
    stage, node, reached = _stage(place), place.node, network.reached[turn] * _FLOAT
    once = network.parameters * _FLOAT if reached else 0
    low = _HALF if place.bf16 else _FLOAT
    gathered = network.gathered[turn] * work.micro_batches * low
    if stage:
        # Stage 1 reduces what all backwards have left; the others what each leaves.
        reduced = reached * work.micro_batches if stage >= 2 else once
        if stage < 3:
            gathered = network.parameters * low if reached else 0
        return [ring(gathered, place.ranks, node), ring(reduced, place.ranks, node)]
    if place.backend == "fsdp":
        part, copies = place.shard, place.ranks // place.shard
        between = ring(2 * reached / part, copies, node, apart=part)
        # Block by block, so those of several blocks, in the node and beyond, are under way at once.
        own = ring(gathered + reached, part, node)
        return [Sent(own.inside + between.inside, own.across + between.across)]
    return [ring(2 * once, place.ranks, node)]


def text_seconds(work: Work, place: Place, share: float) -> float:
    """Of an iteration's captions, if GPUs reach `share` of their dense rate in float32."""
    return work.text_flops / (place.gpu.fp32 * share * place.ranks)


def computing(work: Work, place: Place, share: float) -> tuple[float, float]:
    """Seconds of an iteration with and without the student in which nothing is sent, captions'
    included."""
    rate = (place.gpu.bf16 if place.bf16 else place.gpu.fp32) * share * place.ranks
    text = text_seconds(work, place, share)
    return work.flops[0] / rate + text, work.flops[1] / rate + text


def seconds(work: Work, place: Place, share: float) -> tuple[float, float]:
    """Of an iteration with and without the student, if GPUs reach `share` of their dense rate, and
    nothing is sent while they compute."""
    with_student, without = (
        busy + sum(part.seconds(place.gpu) for part in parts)
        for busy, parts in zip(computing(work, place, share), sent(work, place), strict=True)
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
    return work.batch * work.sample_bytes / seconds_per_iteration
