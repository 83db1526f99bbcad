"""A run folder that must survive."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def occupied(tmp_path: Path) -> Path:
    """Where recipes of this test would train: a run of hours is in it already."""
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step-0000500"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMIT.json").write_text("{}")
    (run / "recipe.yaml").write_text("name: another\n")
    return run
