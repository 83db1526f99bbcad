"""``stack status``: how runs are doing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stack.report.status import status
from stack.util.errors import UserError
from stack.util.files import write_json

_COLOURS = {"running": "green", "finished": "green", "failed": "red", "silent": "red"}
_FIGURES = {
    "memory": {
        "gpu_gb": "{:.3g} GB on the fullest GPU",
        "host_gb": "{:.3g} GB in the largest process",
    },
    "waits": {"data_wait": "data {:.1%}", "save_wait": "saves {:.1%}"},
    "ratios": {
        "clipped": "{:.1%} at a clip",
        "discriminator_accuracy": "discriminator right {:.1%} of the time",
    },
    "mishaps": {"skipped": "{:.0f} skipped iterations", "bad_samples": "{:.0f} damaged samples"},
}
"""Figures of health that one line says."""


def show_status(runs: Sequence[Path], *, json_file: Path | None = None) -> int:
    """Print one run in full, or several as a table, below which those are named that cannot be
    read; returns 0.

    Raises:
        UserError: none is a run's folder.
    """
    found, refused = _read(runs)
    if not found:
        raise UserError(refused[0])
    console = Console(highlight=False, emoji=False)
    if len(runs) == 1:
        _whole(console, found[0])
    else:
        _table(console, found)
    for text in refused:
        console.print(f"not shown: {escape(text)}", soft_wrap=True)
    if json_file:
        write_json(json_file, found[0] if len(runs) == 1 else found)
    return 0


def _read(runs: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """What there is to say of runs, and why nothing of others."""
    found, refused = [], []
    for run in runs:
        try:
            found.append(status(run))
        except UserError as error:
            refused.append(str(error))
    return found, refused


def _whole(console: Console, row: dict[str, Any]) -> None:
    colour = _COLOURS.get(row["state"], "yellow")
    console.print(f"{escape(row['run'])}: [{colour}]{row['state']}[/]", soft_wrap=True)
    for name, text in _facts(row).items():
        console.print(f"  {name:12} {escape(text)}", soft_wrap=True)
    for name, value in row["health"]["losses"].items():
        console.print(f"  {f'loss {name}':18} {value:.4g}")
    for text in row["health"]["warnings"]:
        console.print(f"  [yellow]look[/]         {escape(text)}", soft_wrap=True)
    if row["restarts"]:
        _restarts(console, row["restarts"])


def _facts(row: dict[str, Any]) -> dict[str, str]:
    """What one line each says of a run."""
    facts = {"step": _step(row)}
    if row["reason"] and row["state"] not in ("running", "finished"):
        facts["reason"] = row["reason"]
    if row["images_per_second"]:
        facts["rate"] = f"{row['images_per_second']:.4g} images/s"
    if row["seconds_left"] is not None and row["state"] != "finished":
        facts["time left"] = duration(row["seconds_left"])
    if last := row["last_checkpoint"]:
        facts["checkpoint"] = f"step {last['step']}, {duration(last['age_seconds'])} ago"
    if row["goodput"] is not None:
        facts["goodput"] = f"{row['goodput']:.1%} of the time under way"
    health = row["health"]
    for title, figures in _FIGURES.items():
        told = [text.format(health[name]) for name, text in figures.items() if name in health]
        if told:
            facts[title] = ", ".join(told)
    if "rank_lag" in health:
        facts["slowest"] = f"rank {health['slowest_rank']:.0f}, by {health['rank_lag']:.1%}"
    return facts


def _restarts(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"restarts: {len(rows)}", title_justify="left")
    for title in ("at step", "lost", "away", "because"):
        table.add_column(title, overflow="fold")
    for row in rows:
        lost = f"{row['lost_steps']} steps, {duration(row['lost_seconds'])}"
        away, reason = duration(row["away_seconds"]), escape(row["reason"])
        table.add_row(str(row["step"]), lost, away, reason)
    console.print(table)


def _table(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(padding=(0, 0), pad_edge=False)
    table.add_column("run", overflow="fold")
    for title in ("state", "step", "img/s", "left", "saved", "re", "good", "look"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        colour = _COLOURS.get(row["state"], "yellow")
        last, rate, good = row["last_checkpoint"], row["images_per_second"], row["goodput"]
        table.add_row(
            escape(row["run"]),
            f"[{colour}]{row['state']}[/]",
            _step(row),
            f"{rate:.0f}" if rate else "-",
            duration(row["seconds_left"]) if row["seconds_left"] is not None else "-",
            str(last["step"]) if last else "-",
            str(len(row["restarts"])),
            f"{good:.0%}" if good is not None else "-",
            str(len(row["health"]["warnings"]) or ""),
        )
    console.print(table)


def _step(row: dict[str, Any]) -> str:
    return f"{row['step']}/{row['total_steps'] or '?'}"


def duration(seconds: float) -> str:
    """A time that people can take in: 12 s, 3 min, 4 h 05, 6 d 02 h."""
    whole = timedelta(seconds=round(seconds))
    hours, rest = divmod(whole.seconds, 3600)
    if whole.days:
        return f"{whole.days} d {hours:02} h"
    if hours:
        return f"{hours} h {rest // 60:02}"
    return f"{rest // 60} min" if rest >= 60 else f"{rest} s"
