"""What the alerts look at is there to be looked at: a run of a few iterations logs all of it."""

from __future__ import annotations

from pathlib import Path

from stack.report.alerts import FIGURES, RATE, SPREAD
from stack.report.panels import PANELS
from tests.pipeline import World, finish, logged_rows, recipe_fields

QUICK = {"quick_every": 2, "quick_samples": 24, "batch": 8}


def test_every_figure_of_a_rule_is_logged_and_shown(world: World, tmp_path: Path) -> None:
    run = finish(tmp_path, recipe_fields(world, evaluation=QUICK, iterations=2))
    logged = {name for row in logged_rows(run) for name in row}
    assert {*FIGURES, RATE, SPREAD} <= logged
    assert set(FIGURES) <= {name for panel in PANELS for name in panel.curves}
