"""A run folder as a report reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stack.report.history import History, read_history
from stack.util.errors import UserError
from stack.util.files import read_json


@dataclass(frozen=True)
class RunFolder:
    """What there is to say of one run.

    Args:
        text, recipe: the resolved recipe, as written and as plain values; empty if there is none.
        evaluation: the newest one. evaluations: by suite; empty where nothing was evaluated.
    """

    path: Path
    name: str
    history: History
    text: str
    recipe: dict[str, Any]
    evaluation: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]


def open_run(path: Path) -> RunFolder:
    """Read a run's log, recipe and evaluations.

    Raises:
        UserError: ``path`` has no readable metrics.jsonl, recipe.yaml or evaluation.json.
    """
    history = read_history(path / "metrics.jsonl")
    text, recipe = _recipe(path / "recipe.yaml")
    newest = path / "evaluation.json"
    evaluation: dict[str, Any] = read_json(newest) if newest.exists() else {}
    suites = {file.stem: read_json(file) for file in sorted(path.glob("evaluations/*.json"))}
    if evaluation:
        suites |= {evaluation.get("suite", "digits"): evaluation}
    name = str(recipe.get("name", path.name))
    return RunFolder(path, name, history, text, recipe, evaluation, suites)


def flat(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every field of a recipe by dotted name."""
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _recipe(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.exists():
        return "", {}
    text = path.read_text()
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML ({reason}); restore it") from None
    if not isinstance(recipe, dict):
        raise UserError(f"{path}: not a recipe (no fields); restore it")
    return text, recipe
