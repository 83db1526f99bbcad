"""From rows to samples, step by step, for the text and the page alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.download.outcome import SAVED


@dataclass(frozen=True)
class Step:
    """`count` rows, lost in this step or left by those before it. `start`: rows beside them that
    are still there."""

    label: str
    count: int
    start: int = 0
    lost: bool = False


def funnel(told: Mapping[str, Any]) -> list[Step]:
    """The steps that rows came to or were lost in, in order."""
    left = told["rows"]
    steps = [Step("rows", left)]

    def lose(label: str, lost: int) -> None:
        nonlocal left
        left -= lost
        steps.append(Step(label, lost, left, lost=True))

    for rule, lost in told["dropped"].items():
        lose(rule, lost)
    if told["dropped"]:
        steps.append(Step("kept by the filter", left))
    states = told["states"]
    given = sum(states.values())
    if states and left > given:
        lose("in other parts", left - given)
        steps.append(Step("given to this download", given))
    for state, lost in states.items():
        if lost and state != SAVED:
            lose(state, lost)
    if told["shards"] or states:
        steps.append(Step("samples", told["samples"]))
    return steps


def share(count: float, whole: float) -> str:
    return f"{100 * count / whole:.1f} %" if whole else "-"


def condition(told: Mapping[str, Any]) -> list[str]:
    """What the folder lacks, as sentences."""
    parts, pending = told["parts"] or {}, told["states"].get("pending", 0)
    said = []
    if told["unfinished"]:
        said.append(f"Unfinished: {pending:,} rows pending." if pending else "Unfinished.")
    for what in ("missing", "unfinished", "empty"):
        if names := parts.get(what):
            more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
            of = f"{len(names):,} of {parts['expected']:,} parts"
            said.append(f"{of} {what}: {', '.join(names[:3])}{more}.")
    return said
