"""The table that ``stack evaluate`` prints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from stack.evaluate.intervals import FEW
from stack.report.published import rows as published_rows
from stack.train.build_suite import Opened

log = logging.getLogger(__name__)


def print_table(target: str, opened: Opened, result: Mapping[str, Any]) -> None:
    """Models side by side, with intervals; published figures; a warning where samples are few."""
    names = [name for name, row in result.items() if isinstance(row, dict) and "intervals" in row]
    table = Table()
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    keys = dict.fromkeys(key for name in names for key in result[name]["intervals"])
    for key in ("nfe", "latency_seconds", "images_per_second"):
        table.add_row(key, *(f"{result[name][key]:.3g}" for name in names))
    for key in keys:
        table.add_row(key, *(_cell(result[name]["intervals"].get(key)) for name in names))
    console = Console(highlight=False)
    told = f"{opened.name}, {result['samples']} samples, seed {result['seed']}"
    console.print(f"{target}: {told}", soft_wrap=True)
    console.print(table)
    console.print("brackets: 95% intervals, and of how many samples or prompts")
    if judge := result.get("judge"):
        shares = ", ".join(f"{name} {share:.4f}" for name, share in judge["accuracy"].items())
        halves = result["real_halves_frechet_distance"]
        console.print(
            f"Frechet distance between two halves of the real data {halves:.3f}; judge on "
            f"held-out pictures: {shares}",
            soft_wrap=True,
        )
    for dataset in opened.suite.published:
        for row in published_rows(dataset):
            if row.kind != "other":
                told = ", ".join(f"{name} {value:g}" for name, value in row.metrics.items())
                console.print(f"published, {row.method} ({row.hint}): {told}", soft_wrap=True)
    few = [key for key in keys if any(result[n]["intervals"][key]["few_samples"] for n in names)]
    if few:
        log.warning(
            "fewer than %d samples behind %s: for a quick look, not to be compared with published "
            "figures",
            FEW,
            ", ".join(few),
        )


def _cell(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return "-"
    low, high, samples = interval["low"], interval["high"], interval["samples"]
    return f"{interval['value']:.4g} [{low:.4g}, {high:.4g}; {samples}]"
