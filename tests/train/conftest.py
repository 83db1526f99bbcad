"""A finished run, to compare interrupted ones with."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.cli import main
from tests.pipeline import World, recipe_fields, write_recipe


@pytest.fixture(scope="session")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of six iterations in one go; never changed by a test."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["distill", str(write_recipe(folder, recipe_fields(world)))]) == 0
    return folder / "run"
