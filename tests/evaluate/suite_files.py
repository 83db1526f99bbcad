"""A run of two iterations, and what a suite names, for tests of ``stack evaluate --suite``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stack.cli import main
from tests.evaluate.networks import save_clip, untrained_classifier
from tests.pipeline import World, caption, recipe_fields, write_recipe


def brief_run(world: World, folder: Path) -> Path:
    """A run whose teacher takes two steps."""
    fields = recipe_fields(world, iterations=2, evaluation={"teacher_steps": 2, "batch": 16})
    assert main(["distill", str(write_recipe(folder, fields))]) == 0
    return folder / "run"


def save_parts(folder: Path, captions: int = 40) -> Path:
    """``judge``, ``clip`` and ``captions.txt``."""
    untrained_classifier(folder / "judge")
    save_clip(folder / "clip")
    (folder / "captions.txt").write_text("\n".join(caption(number) for number in range(captions)))
    return folder


def save_suite(folder: Path, world: World, **fields: Any) -> Path:
    """``suite.yaml``, of the parts beside it."""
    suite = {
        "name": "tiny",
        "prompts": "captions.txt",
        "reference": str(world.shards),
        "networks": {"classifier": "judge", "clip": "clip"},
        **fields,
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    return folder
