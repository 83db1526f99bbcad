"""``stack status``: how runs are doing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stack.report.status import status
from stack.util.files import write_json

_COLOURS = {"running": "green", "finished": "green", "failed": "red", "silent": "red"}


def show_status(runs: Sequence[Path], *, json_file: Path | None = None) -> int:
    """Print one run in full, or several as a table; returns 0.

    Raises:
        UserError: one is not a run's folder.
    """
    found = [status(run) for run in runs]
    console = Console(highlight=False)
    if len(found) == 1:
        _whole(console, found[0])
    else:
        _table(console, found)
    if json_file:
        write_json(json_file, found[0] if len(found) == 1 else found)
    return 0


def _whole(console: Console, row: dict[str, Any]) -> None:
    colour = _COLOURS.get(row["state"], "yellow")
    console.print(f"{row['run']}: [{colour}]{row['state']}[/]")
    for name, text in _facts(row).items():
        console.print(f"  {name:12} {text}", soft_wrap=True)
    for name, value in row["health"]["losses"].items():
        console.print(f"  loss {name:7} {value:.4g}")
    for text in row["health"]["warnings"]:
        console.print(f"  [yellow]look[/]         {text}", soft_wrap=True)
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
    for name, unit in (("gpu_gb", "GB on the fullest GPU"), ("host_gb", "GB in the largest rank")):
        if name in health:
            facts["memory"] = f"{health[name]:.3g} {unit}"
            break
    if "data_wait" in health:
        facts["waits"] = f"data {health['data_wait']:.1%}, saves {health['save_wait']:.1%}"
    if "rank_lag" in health:
        facts["slowest"] = f"rank {health['slowest_rank']:.0f}, by {health['rank_lag']:.1%}"
    return facts


def _restarts(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{len(rows)} restarts", title_justify="left")
    for title in ("at step", "lost", "away", "because"):
        table.add_column(title, overflow="fold")
    for row in rows:
        lost = f"{row['lost_steps']} steps, {duration(row['lost_seconds'])}"
        cells = (str(row["step"]), lost, duration(row["away_seconds"]), row["reason"])
        table.add_row(*cells)
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
            row["run"],
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
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    whole = timedelta(seconds=round(seconds))
    hours, rest = divmod(whole.seconds, 3600)
    return f"{whole.days} d {hours:02} h" if whole.days else f"{hours} h {rest // 60:02}"
