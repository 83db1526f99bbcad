"""The table that ``stack evaluate`` prints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from stack.evaluate.intervals import FEW
from stack.report.metrics_table import models_of
from stack.report.published import rows as published_rows
from stack.report.terminal import figures_table
from stack.train.build_suite import Opened

log = logging.getLogger(__name__)


def print_table(target: str, opened: Opened, result: Mapping[str, Any]) -> None:
    """Models side by side, with intervals; published figures; a warning where samples are few."""
    intervals = [row["intervals"] for row in models_of(result).values()]
    console = Console(highlight=False)
    told = f"{opened.name}, {result['samples']} samples, seed {result['seed']}"
    console.print(f"{target}: {told}", soft_wrap=True)
    console.print(figures_table(result))
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
    few = dict.fromkeys(k for found in intervals for k, one in found.items() if one["few_samples"])
    if few:
        log.warning(
            "fewer than %d samples behind %s: for a quick look, not to be compared with published "
            "figures",
            FEW,
            ", ".join(few),
        )
