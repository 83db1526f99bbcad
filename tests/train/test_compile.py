"""compute.compile: the same iteration to rounding, alone and with FSDP2; all blocks compile."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.pipeline import World, metrics_of, recipe_fields, write_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.drill,  # A C++ compiler's minutes; tests/nets has blocks compiled at every push.
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU"),
]
LAYOUTS: dict[str, dict[str, Any]] = {
    "none": {"backend": "none"},
    "fsdp": {"backend": "fsdp", "processes": 2},
}


def figures(world: World, folder: Path, parallel: dict[str, Any], compiled: bool) -> dict:
    """Of one iteration of student and critics."""
    fields = recipe_fields(
        world,
        iterations=1,
        student_every=1,
        checkpoint={"every": 1},
        parallel={"timeout": 3600, "watchdog": 0, **parallel},
        compute={"compile": compiled},
    )
    command = ["stack", "distill", write_recipe(folder, fields)]
    for rank in forked.start_ranks(*command, ranks=parallel.get("processes", 1)):
        _, told = rank.communicate(timeout=3600)
        assert rank.returncode == 0, told
        # torch goes on without compilation, and says so, where a function has too many variants.
        assert "recompile_limit" not in told
    return metrics_of(folder / "run")[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_iteration_is_the_same(layout: str, world: World, tmp_path: Path) -> None:
    plain, compiled = (
        figures(world, tmp_path / str(on), LAYOUTS[layout], on) for on in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=2e-4, abs=1e-7)
