"""What ranks hold and send, counted: parts of networks, bytes of collectives, peak memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest

from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.train.budget import GPUS
from stack.train.build_plan import Plan, Planner
from stack.verbs.plan import subject_of
from tests import forked
from tests.parallel.rows import rows
from tests.pipeline import World, make_teacher, recipe_fields, write_recipe

pytestmark = pytest.mark.slow

NETWORKS = ("student", "fake", "heads")
RANKS = 2

Measured = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def measured(world: World, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Figures of every rank, of iterations in which all networks move; each layout runs once."""
    worlds: dict[tuple[int, int], World] = {}
    known: dict[str, list[dict[str, Any]]] = {}

    def world_of(channels: tuple[int, int]) -> World:
        if channels not in worlds:
            teacher = tmp_path_factory.mktemp("wide") / "teacher"
            make_teacher(teacher, channels)
            worlds[channels] = World(teacher, world.shards, world.data)
        return worlds[channels]

    def run(
        backend: str,
        accumulation: int = 1,
        ranks: int = RANKS,
        *,
        channels: tuple[int, int] = (32, 64),  # Wide enough for weights to outweigh activations.
        fields: dict[str, Any] | None = None,
        **more: Any,
    ) -> list[dict[str, Any]]:
        name = repr((backend, accumulation, ranks, channels, fields, more))
        if name not in known:
            parallel = {"backend": backend, "processes": ranks, "accumulation": accumulation}
            parallel |= more
            made = {"student_every": 1, "parallel": parallel} | (fields or {})
            folder = tmp_path_factory.mktemp("measured")
            recipe = write_recipe(folder, recipe_fields(world_of(channels), **made))
            out = folder / "out.json"
            done = forked.run("tests.parallel.measure", str(recipe), str(out), ranks=ranks)
            assert done.returncode == 0, done.stderr
            known[name] = [row | {"recipe": recipe} for row in json.loads(out.read_text())]
        return known[name]

    return run


HOLDS = {
    # backend: share of the weights and of the optimizer's state that a rank holds
    "ddp": (1.0, 1.0),
    "fsdp": (0.5, 0.5),
    "zero1": (1.0, 0.5),
    "zero2": (1.0, 0.5),
    "zero3": (0.5, 0.5),
}


def several(names: Iterable[str], rare: Collection[tuple[str, int]]) -> list[Any]:
    """Each name with one micro-batch and with two; the rare pairs are for make drill."""
    return rows(((name, parts) for name in names for parts in (1, 2)), rare)


@pytest.mark.parametrize("backend", HOLDS)
def test_every_network_is_cut(measured: Measured, backend: str) -> None:
    weights, moments = HOLDS[backend]
    for row in measured(backend):
        for name in NETWORKS:
            cut = row["cut"][name]
            assert cut["forward"] == pytest.approx(weights * cut["whole"], rel=0.02)
            assert cut["moments"] == pytest.approx(moments * cut["whole"], rel=0.02)


def theory(backend: str, accumulation: int, sizes: dict[str, int]) -> float:
    """Bytes that a rank sends in a joint iteration (float32).

    Weights are gathered for the student's forward and backward (2), for the fake score's forward
    without gradient, forward and backward (3), for the heads' two forwards and backwards (4); under
    accumulation a sweep before, through student and heads, finds the statistics of all
    micro-batches.
    """
    whole = sum(sizes.values())
    visits = 2 * sizes["student"] + 3 * sizes["fake"] + 4 * sizes["heads"]
    if accumulation > 1:
        visits += sizes["student"] + sizes["heads"]
    share = 4 * (RANKS - 1) / RANKS
    match backend:
        case "ddp":
            return share * 2 * whole
        case "fsdp":  # Reduced in the last micro-batch only.
            return share * (accumulation * visits + whole)
        case "zero1":  # Reduced once, and the new weights gathered.
            return share * 2 * whole
        case "zero2":  # Reduced in every micro-batch: no rank keeps the rest.
            return share * (accumulation * whole + whole)
    return share * (accumulation * visits + accumulation * whole)


@pytest.mark.parametrize(("backend", "accumulation"), several(HOLDS, {("zero2", 2)}))
def test_bytes_sent_are_what_theory_gives(
    measured: Measured, backend: str, accumulation: int
) -> None:
    for row in measured(backend, accumulation):
        sizes = {name: row["cut"][name]["whole"] for name in NETWORKS}
        found = sum(row["sent"].values())
        assert found == pytest.approx(theory(backend, accumulation, sizes), rel=0.05)


REDUCTIONS = ("allreduce_", "_reduce_scatter_base_", "reduce_")


@pytest.mark.parametrize("backend", ["ddp", "fsdp", "zero1"])
def test_accumulation_reduces_once(measured: Measured, backend: str) -> None:
    one, two = (
        sum(measured(backend, parts)[0]["sent"].get(name, 0) for name in REDUCTIONS)
        for parts in (1, 2)
    )
    assert two == pytest.approx(one, rel=0.001)


def test_fsdp_holds_little_more_than_half_of_ddp(measured: Measured) -> None:
    """Peak of live bytes in forward, backward and step, the whole teacher included."""
    whole = measured("ddp")[0]["peak"]
    assert max(row["peak"] for row in measured("fsdp")) <= 0.62 * whole


LAYOUTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    # name: backend, ranks, other fields of parallel
    "ddp": ("ddp", 2, {}),
    "fsdp": ("fsdp", 2, {}),
    "hsdp": ("fsdp", 4, {"teacher": "sharded", "shard_size": 2}),
    "zero1": ("zero1", 2, {}),
    "zero2": ("zero2", 2, {}),
    "zero3": ("zero3", 2, {}),
}


def planned(row: dict[str, Any], ranks: int) -> Plan:
    """Of the recipe that the row was measured on."""
    recipe = load_recipe(row["recipe"])
    assert isinstance(recipe, DistillRecipe)
    return Planner(subject_of(recipe), GPUS["h100"], ranks, 8, 0.4).plan(recipe)


@pytest.mark.parametrize(("name", "accumulation"), several(LAYOUTS, {("hsdp", 2), ("zero2", 2)}))
def test_a_plan_sends_what_is_counted(measured: Measured, name: str, accumulation: int) -> None:
    """Also of copies of a part of the ranks, whose teacher is cut."""
    backend, ranks, more = LAYOUTS[name]
    assert_sent_as_planned(measured(backend, accumulation, ranks, **more), ranks)


def assert_sent_as_planned(rows: list[dict[str, Any]], ranks: int) -> None:
    plan = planned(rows[0], ranks)
    for row in rows:
        found = sum(row["sent"].values()) / plan.recipe.student_every
        assert found == pytest.approx(plan.facts()["bytes_communicated"], rel=0.02)


VARIANTS: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
    # name: backend, micro-batches, what else the gan section has, other fields
    "fake": ("fsdp", 1, {"features": "fake"}, {}),
    "fake_joint": ("fsdp", 2, {"features": "fake_joint"}, {}),
    "fake_joint, zero3": ("zero3", 1, {"features": "fake_joint"}, {}),
    "no GAN loss, by turns": ("fsdp", 2, {"weight": 0}, {"alternation": "exclusive"}),
}


@pytest.mark.parametrize("name", rows(VARIANTS, ["fake", "fake_joint"]))
def test_a_plan_sends_what_is_counted_of_other_algorithms(measured: Measured, name: str) -> None:
    """Over an iteration with the student and one without."""
    backend, accumulation, gan, more = VARIANTS[name]
    plain = {"weight": 0.01, "resolutions": [8], "width": 8}
    fields = {"gan": plain | gan, "student_every": 2, **more}
    teacher = "sharded" if backend == "fsdp" else "replicated"
    assert_sent_as_planned(measured(backend, accumulation, fields=fields, teacher=teacher), RANKS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_plan_holds_what_is_held(measured: Measured, name: str) -> None:
    """To 2%: weights, moments, average and teacher, between iterations."""
    backend, ranks, more = LAYOUTS[name]
    assert_held_as_planned(measured(backend, 1, ranks, **more), ranks)


def test_a_plan_holds_what_8_bits_hold(measured: Measured) -> None:
    """With fsdp, by torchao; wide, since the moments of small weights stay float32."""
    adam = {"kind": "adamw8bit", "lr": 1e-3}
    fields = {"optim": dict.fromkeys(("student", "fake", "heads"), adam)}
    assert_held_as_planned(measured("fsdp", channels=(128, 256), fields=fields), RANKS)


def assert_held_as_planned(rows: list[dict[str, Any]], ranks: int) -> None:
    parts = planned(rows[0], ranks).bytes_per_gpu
    expected = sum(parts[part] for part in ("weights", "optimizer", "averages", "teacher"))
    for row in rows:
        assert row["held"] == pytest.approx(expected, rel=0.02)
