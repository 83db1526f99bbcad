"""An evaluation's figures as a terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from stack.report.metrics_table import METRICS, models_of

_COSTS = ("nfe", "latency_seconds", "images_per_second")


def figures_table(evaluation: Mapping[str, Any]) -> Table:
    """A column per model of an evaluation.json; a figure with its interval, where it has one."""
    models = models_of(evaluation)
    table = Table()
    table.add_column("")
    for name in models:
        table.add_column(name, justify="right")
    keys = dict.fromkeys((*_COSTS, *(metric.key for metric in METRICS)))
    for key in keys:
        if any(key in model for model in models.values()):
            table.add_row(key, *(_cell(model, key) for model in models.values()))
    return table


def _cell(model: Mapping[str, Any], key: str) -> str:
    if key not in model:
        return "-"
    interval = model.get("intervals", {}).get(key)
    if interval is None:
        return f"{model[key]:.3g}"
    low, high, samples = interval["low"], interval["high"], interval["samples"]
    return f"{interval['value']:.4g} [{low:.4g}, {high:.4g}; {samples}]"
