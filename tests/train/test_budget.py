"""What is sent on many nodes, and what is held, against counts by other means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stack.train.budget import GPUS, Network, Place, Work, gpu_named, memory, ring, seconds, sent
from stack.train.budget import total as total_of

P, TEACHER = 800_000_000, 900_000_000
WORK = Work(
    trained=(Network(P, P // 10, "adamw", (2 * P, P), (P, 0)),),
    teacher=TEACHER,
    frozen=0,
    averages=1,
    activations=10 << 30,
    flops=(1e15, 1e15),
    student_every=10,
    batch=1024,
    micro_batches=1,
    sample_bytes=1,
)
FLAT = Place(GPUS["h100"], 64, 8, "fsdp", 64, bf16=True, teacher_sharded=False, offload=False)
HSDP = replace(FLAT, shard=8)
DDP = replace(FLAT, backend="ddp")


def walked(size: float, ranks: list[int], node: int) -> tuple[float, float]:
    """The most that a GPU sends in its node and beyond, hop by hop, in as many rings as a node has
    of these ranks, each with a part of the bytes; a ring enters and leaves nodes by its own GPU."""
    nodes: dict[int, list[int]] = {}
    for rank in ranks:
        nodes.setdefault(rank // node, []).append(rank)
    rings = len(nodes[0])
    inside, across = dict.fromkeys(ranks, 0.0), dict.fromkeys(ranks, 0.0)
    for first in range(rings):
        path = [r for members in nodes.values() for r in members[first:] + members[:first]]
        for rank, after in zip(path, path[1:] + path[:1], strict=True):
            way = inside if rank // node == after // node else across
            way[rank] += size * (len(ranks) - 1) / len(ranks) / rings
    return max(inside.values()), max(across.values())


@pytest.mark.parametrize(
    ("ranks", "node", "apart"),
    [(64, 8, 1), (8, 8, 1), (4, 8, 1), (16, 8, 1), (8, 8, 8), (4, 8, 16), (16, 8, 4), (32, 8, 2)],
)
def test_a_ring_sends_what_its_hops_send(ranks: int, node: int, apart: int) -> None:
    found = ring(1e9, ranks, node, apart)
    inside, across = walked(1e9, [n * apart for n in range(ranks)], node)
    assert found.inside == pytest.approx(inside)
    assert found.across == pytest.approx(across)


def test_many_nodes_are_bound_by_all_their_ports() -> None:
    """64 GPUs at 50 GB/s each beyond the node and 450 GB/s inside: 400 GB/s, not 50."""
    computing = 1e15 / (989e12 * 0.4 * 64)
    moved = 2 * 4 * P * 63 / 64
    assert seconds(WORK, DDP, 0.4)[0] - computing == pytest.approx(moved / 400e9)
    assert seconds(WORK, DDP, 0.4)[1] == pytest.approx(computing)


def test_captions_are_encoded_in_float32_before_every_step() -> None:
    text = replace(WORK, text_flops=1e13)
    for place, rate in ((DDP, 67e12), (replace(DDP, gpu=GPUS["a100-80gb"]), 19.5e12)):
        pairs = zip(seconds(text, place, 0.4), seconds(WORK, place, 0.4), strict=True)
        assert all(more - less == pytest.approx(1e13 / (rate * 0.4 * 64)) for more, less in pairs)


def test_what_two_backwards_come_to_is_reduced_twice() -> None:
    """But once by what reduces after the last backward."""
    twice = replace(WORK.trained[0], reached=(P + P // 2, 0))
    work = replace(WORK, trained=(twice,), micro_batches=4)
    one = replace(WORK, micro_batches=4)
    for place, times in (
        (DDP, 0),
        (FLAT, 1),
        (replace(DDP, backend="zero1"), 0),
        (replace(DDP, backend="zero2"), 4),
        (replace(DDP, backend="zero3"), 4),
    ):
        more = total_of(sent(work, place)[0]) - total_of(sent(one, place)[0])
        assert more == pytest.approx(times * 4 * (P // 2) * 63 / 64, rel=1e-6), place.backend


def test_copies_of_a_node_send_little_beyond_it() -> None:
    """HSDP gathers and scatters inside; between nodes go the parts of the gradients."""
    flat, copies = sent(WORK, FLAT)[0], sent(WORK, HSDP)[0]
    beyond = sum(part.across for part in copies)
    assert beyond == pytest.approx(2 * 4 * P / 8 * 7 / 8)
    assert beyond == pytest.approx(2 / 8 * 4 * P * 7 / 8)
    gathered, scattered = 2 * 2 * P * 7 / 8, 4 * P * 7 / 8
    assert sum(part.inside for part in copies) == pytest.approx(gathered + scattered)
    assert total_of(flat) == pytest.approx((2 * 2 * P + 4 * P) * 63 / 64)
    for work in (WORK, replace(WORK, micro_batches=8)):
        pairs = zip(seconds(work, HSDP, 0.4), seconds(work, FLAT, 0.4), strict=True)
        assert all(less < more for less, more in pairs)


def test_a_sharded_teacher_is_cut_and_gathered_as_the_others() -> None:
    place = replace(HSDP, teacher_sharded=True)
    work = replace(WORK, consulted=(3 * TEACHER, TEACHER))
    assert memory(work, place)["teacher"] == 2 * TEACHER // 8
    for turn, times in ((0, 3), (1, 1)):
        more = total_of(sent(work, place)[turn]) - total_of(sent(work, HSDP)[turn])
        assert more == pytest.approx(times * 2 * TEACHER * 7 / 8)


def test_what_offload_leaves_on_the_gpu() -> None:
    parts = memory(WORK, replace(FLAT, offload=True, teacher_sharded=True))
    for part in ("weights", "gradients", "optimizer", "averages", "teacher"):
        assert parts[part] == 0, part
    several = memory(replace(WORK, micro_batches=2), replace(FLAT, offload=True))
    assert several["gradients"] == 4 * P, "whole until the last micro-batch"
    assert memory(WORK, replace(FLAT, offload=True, backend="zero2"))["gradients"] == 4 * P // 64


def test_a_grid_takes_what_training_leaves_free() -> None:
    """The weights that the average stands for, aside, and the autoencoder's maps."""
    assert memory(WORK, DDP)["sample grids"] == 0
    small = replace(WORK, activations=0, drawn=2 << 30)
    assert memory(small, DDP)["sample grids"] == 2 << 30
    assert memory(replace(small, averages=0), DDP)["sample grids"] == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GB200", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_device_is_known_by_its_name(name: str, kind: str | None) -> None:
    assert gpu_named(name) == (GPUS[kind] if kind else None)
