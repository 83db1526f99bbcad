"""An EDM distillation on two ranks is that of one process, and its teacher's training too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.edm_world import EdmWorld, distill_fields, make_edm_world, pretrain_edm_fields
from tests.parallel.rows import rows
from tests.pipeline import metrics_of, run_stack, write_recipe

pytestmark = pytest.mark.slow

BACKENDS: dict[str, dict[str, Any]] = {
    "ddp": {"backend": "ddp", "processes": 2},
    "fsdp": {"backend": "fsdp", "processes": 2, "teacher": "sharded"},
    "zero2": {"backend": "zero2", "processes": 2},
    "zero3": {"backend": "zero3", "processes": 2},
}


@pytest.fixture(scope="module")
def edm_world(tmp_path_factory: pytest.TempPathFactory) -> EdmWorld:
    return make_edm_world(tmp_path_factory.mktemp("edm"))


def losses(folder: Path, verb: str, fields: dict[str, Any]) -> dict[int, dict[str, float]]:
    ranks = fields.get("parallel", {}).get("processes", 1)
    done = run_stack(verb, str(write_recipe(folder, fields)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    rows = metrics_of(folder / "run").items()
    return {
        step: {name: value for name, value in row.items() if name.startswith(("loss/", "r/"))}
        for step, row in rows
    }


@pytest.fixture(scope="module")
def alone(edm_world: EdmWorld, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return losses(tmp_path_factory.mktemp("alone"), "distill", distill_fields(edm_world))


@pytest.mark.parametrize("backend", rows(BACKENDS, ["ddp", "zero2"]))
def test_the_curve_is_that_of_one_process(
    tmp_path: Path, edm_world: EdmWorld, alone: dict[int, dict[str, float]], backend: str
) -> None:
    found = losses(tmp_path, "distill", distill_fields(edm_world, parallel=BACKENDS[backend]))
    assert found.keys() == alone.keys()
    for step, row in alone.items():
        assert found[step] == pytest.approx(row, rel=2e-3, abs=1e-6), step


@pytest.mark.drill
def test_compiled_and_recomputed_blocks_change_nothing(
    tmp_path: Path, edm_world: EdmWorld, alone: dict[int, dict[str, float]]
) -> None:
    fields = distill_fields(edm_world, compute={"checkpointing": "full", "compile": True})
    for step, row in losses(tmp_path, "distill", fields).items():
        assert row == pytest.approx(alone[step], rel=2e-3, abs=1e-6), step


def test_pretraining(tmp_path: Path, edm_world: EdmWorld) -> None:
    """Without dropout, whose masks are of each rank."""
    fields = pretrain_edm_fields(edm_world)
    fields["edm"] = fields["edm"] | {"dropout": 0.0}
    alone = losses(tmp_path / "alone", "pretrain", fields)
    fields["parallel"] = {"backend": "ddp", "processes": 2}
    both = losses(tmp_path / "both", "pretrain", fields)
    assert both.keys() == alone.keys()
    for step, row in alone.items():
        assert both[step] == pytest.approx(row, rel=2e-3), step
    assert (tmp_path / "both" / "run" / "teacher" / "network.safetensors").exists()
