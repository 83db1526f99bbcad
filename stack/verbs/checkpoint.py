"""``stack checkpoint``: what a run has saved, whether it is whole, and what may go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stack.checkpoint import commit, folders, verify
from stack.config.load import stored_recipe
from stack.util.errors import UserError
from stack.util.files import write_json


def list_all(run: Path, *, json_file: Path | None = None) -> int:
    """Print every checkpoint of a run; returns 0."""
    rows = [_facts(folder) for folder in _every(run)]
    _show(run, rows, {"step": "step", "size": "bytes", "score": "score", "saved by": "saved_by"})
    if json_file:
        write_json(json_file, rows)
    return 0


def verify_all(run: Path, *, json_file: Path | None = None) -> int:
    """Hash every file of every checkpoint; returns 0 if all are whole, or 1."""
    rows = [_facts(folder) | {"fault": verify.fault(folder)} for folder in _every(run)]
    _show(run, [row | {"state": row["fault"] or "whole"} for row in rows], {"state": "state"})
    if json_file:
        write_json(json_file, rows)
    return int(any(row["fault"] for row in rows))


def prune(run: Path, *, keep: Mapping[str, int], dry_run: bool) -> None:
    """Remove what need not be kept; the newest whole checkpoint always stays.

    Args:
        keep: arguments of :class:`commit.Keep`; the recipe's where one is not given.
    """
    roots, given = _roots(run), stored_recipe(run).checkpoint
    keep = {"last": given.keep_last, "every": given.keep_every, "best": given.keep_best, **keep}
    for root in roots:
        newest, _ = verify.latest(root)
        gone = commit.superfluous(folders.committed(root), commit.Keep(**keep))
        gone = [folder for folder in gone if folder != newest] + sorted(root.glob("before-*"))
        for folder in gone:
            print(f"{'would remove' if dry_run else 'removed'} {folder}")
            if not dry_run:
                folders.trash(folder)
        if not gone:
            print(f"{root}: nothing to remove")


def _roots(run: Path) -> list[Path]:
    stored_recipe(run)
    found = folders.roots(run)
    if not found:
        raise UserError(f"{run}: checkpoints/: none yet")
    return found


def _every(run: Path) -> list[Path]:
    """All committed checkpoints, those put aside first."""
    found: list[Path] = []
    for root in _roots(run):
        for old in sorted(root.glob("before-*")):
            found += folders.committed(old)
        found += folders.committed(root)
    return found


def _facts(folder: Path) -> dict[str, Any]:
    mark = folders.mark(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    ranks = f"{mark.get('backend', 'unknown')}, {mark.get('world_size', '?')} ranks"
    facts = {"folder": str(folder), "step": folders.step_of(folder), "bytes": size}
    return facts | {"score": mark.get("score"), "saved_by": ranks}


def _show(run: Path, rows: list[dict[str, Any]], columns: Mapping[str, str]) -> None:
    table = Table(title=f"{run}: {len(rows)} checkpoints")
    table.add_column("folder", overflow="fold")
    for title in columns:
        table.add_column(title)
    for row in rows:
        cells = [row[key] for key in columns.values()]
        where = str(Path(row["folder"]).relative_to(run))
        table.add_row(where, *("-" if cell is None else _text(cell) for cell in cells))
    Console(highlight=False).print(table)


def _text(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
