"""``stack ablate``: a matrix of distillations and evaluations, resumable, and its tables."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from stack.config.ablation import Plan, load_plan, slug
from stack.config.load import identity_changes, load_recipe, stored_recipe
from stack.config.schema import DistillRecipe
from stack.parallel.launch import die_with_parent
from stack.report.ablation import Layout, Scores, markdown, result_rows
from stack.report.canvas import table
from stack.report.history import History, read_history
from stack.report.journal import read_rows
from stack.util.errors import UserError
from stack.util.files import read_json, write_atomic, write_json

_EVALUATED = "ablation.json"
"""In a run's folder: the options of its evaluation, and what came out."""


@dataclass(frozen=True)
class Cell:
    """One run of a plan.

    Args:
        values: one of each axis. overrides: of the recipe, all of them.
    """

    values: tuple[str, ...]
    seed: int
    recipe: Path
    overrides: tuple[str, ...]
    folder: Path

    def wanted(self) -> DistillRecipe:
        """Raises: UserError: the recipe or an override is wrong."""
        try:
            recipe = load_recipe(self.recipe, self.overrides)
        except UserError as error:
            raise UserError(f"cell {self.folder.name}: {error}") from None
        if not isinstance(recipe, DistillRecipe):
            raise UserError(f"{self.recipe}: job: {recipe.job}; an ablation distils")
        return recipe

    def begun(self) -> DistillRecipe | None:
        """Its recipe, where the folder holds a run.

        Raises:
            UserError: as :meth:`wanted`, or the run is of another recipe.
        """
        wanted = self.wanted()
        if not (self.folder / "recipe.yaml").is_file():
            return None
        for field, was, now in identity_changes(stored_recipe(self.folder), wanted):
            raise UserError(
                f"{self.folder}/recipe.yaml: {field}: trained with {was!r}, the plan says {now!r}; "
                "remove the folder, or set another out"
            )
        return wanted

    def trained(self) -> bool:
        """Whether all its iterations are done. Raises: as :meth:`begun`."""
        wanted = self.begun()
        if not wanted:
            return False
        ends = (row for row in read_rows(self.folder / "metrics.jsonl") if row.get("event"))
        done = [row["step"] for row in ends if row["event"] == "finished"]
        return bool(done) and done[-1] >= wanted.iterations

    def evaluated(self, options: Mapping[str, Any]) -> bool:
        """Whether the present weights were, with these options."""
        stored = self.folder / _EVALUATED
        if not stored.is_file():
            return False
        found = read_json(stored)
        return found["options"] == options and found["iterations"] == self.wanted().iterations


def ablate(
    path: Path,
    *,
    only: str = "",
    seeds: Sequence[int] = (),
    table_alone: bool = False,
    json_file: Path | None = None,
) -> int:
    """Train and evaluate what is not done yet, and write table.md, table.csv and results.csv.

    Args:
        only: cells whose folder's name holds this. seeds: of the plan's; all if empty.
        table_alone: run nothing.

    Returns: the exit status: that of the first command that failed or was stopped, else 0.
    """
    plan = load_plan(path)
    cells = cells_of(plan, path)
    for cell in cells:
        cell.begun()  # What the last one lacks is told before the first has trained for hours.
    chosen = [
        cell for cell in cells if only in cell.folder.name and (not seeds or cell.seed in seeds)
    ]
    if not chosen:
        raise UserError(f"command line: --only, --seed: no cell of {path} is meant")
    status = 0
    for number, cell in enumerate(chosen if not table_alone else (), 1):
        print(f"[{number}/{len(chosen)}] {cell.folder}", flush=True)
        status = _run(cell, plan)
        _write(plan, cells, json_file)
        if status:
            print(f"{cell.folder}: ended with status {status}; the same command goes on")
            break
    _write(plan, cells, json_file)
    print(Path(plan.out, "table.md").read_text())
    return status


def cells_of(plan: Plan, path: Path) -> list[Cell]:
    """Every run of a plan; seeds outermost, so that a whole matrix is there early."""
    cells = []
    for seed, values in product(plan.seeds, plan.cells()):
        name = f"{slug(values)}-seed{seed}"
        folder = Path(plan.out) / name
        variants = plan.variants(values)
        recipe = next((v.recipe for v in reversed(variants) if v.recipe), plan.recipe)
        own = [override for variant in variants for override in variant.set]
        given = (*plan.set, *own, f"seed={seed}", f"name={name}", f"out={folder}")
        cells.append(Cell(values, seed, path.parent / recipe, given, folder))
    return cells


def _run(cell: Cell, plan: Plan) -> int:
    """Do what is left of a cell; the first command's status that is not 0, or 0."""
    if not cell.trained():
        status = _command("distill", str(cell.recipe), "--resume", *cell.overrides)
        if status:
            return status
    given = plan.options
    if given is None or cell.evaluated(given):
        return 0
    found = cell.folder / f".{_EVALUATED}"
    options = [text for name, value in given.items() for text in _option(name, value)]
    status = _command("evaluate", str(cell.folder), "--json", str(found), *options)
    if status:
        return status
    result = {"options": given, "iterations": cell.wanted().iterations}
    write_json(cell.folder / _EVALUATED, result | {"evaluation": read_json(found)})
    found.unlink()
    return 0


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option] if value else []
    return [option, str(value)]


def _command(*arguments: str) -> int:
    """Run a verb in a process of its own, to which signals go on; its exit status."""
    command = [sys.executable, "-m", "stack", *arguments]
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)

    def forward(number: int, frame: object) -> None:
        child.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _write(plan: Plan, cells: Sequence[Cell], json_file: Path | None) -> None:
    """The tables of what is finished."""
    values: dict[tuple[str, ...], dict[int, dict[str, float]]] = {}
    for cell in cells:
        if found := _scores(cell, plan):
            values.setdefault(cell.values, {})[cell.seed] = found
    layout = Layout(
        {axis: list(rows) for axis, rows in plan.axes.items()},
        {cell: plan.bases_of(cell) for cell in plan.cells()},
        plan.compared(),
        method=plan.interval,
    )
    out, rows = Path(plan.out), list(result_rows(layout, values))
    columns = [*plan.axes, "metric", "mean", "deviation", "seeds", "baseline"]
    columns += ["comparison", "compared", "low", "high", "pairs"]
    write_atomic(out / "table.csv", table(columns, [list(row.values()) for row in rows]))
    write_atomic(out / "table.md", markdown(plan.name, layout, values, notes=_notes(plan)))
    write_atomic(out / "results.csv", table([*plan.axes, "seed", *plan.metrics], _seeds(values)))
    if json_file:
        write_json(json_file, {"plan": plan.name, "rows": rows})


def _notes(plan: Plan) -> list[str]:
    bases = [", ".join(f"{axis} = {value}" for axis, value in b.items()) for b in plan.baseline]
    notes = [f"Baseline: the same cell with {base}." for base in bases] or ["Without a baseline."]
    if plan.options:
        told = ", ".join(f"{name} {value}" for name, value in plan.options.items())
        notes.append(f"Evaluation: {told}.")
    return notes


def _seeds(scores: Scores) -> list[list[Any]]:
    return [
        [*cell, seed, *found.values()]
        for cell, rows in scores.items()
        for seed, found in rows.items()
    ]


def _scores(cell: Cell, plan: Plan) -> dict[str, float] | None:
    """The metrics of a finished cell, by title; None of one that is not finished."""
    if not cell.trained() or not (plan.options is None or cell.evaluated(plan.options)):
        return None
    log, source = cell.folder / "metrics.jsonl", cell.folder / _EVALUATED
    logged = any(metric.logged for metric in plan.metrics.values())
    history = read_history(log) if logged else History([])
    evaluation = read_json(source)["evaluation"] if source.is_file() else {}
    scores = {}
    for title, metric in plan.metrics.items():
        at = metric.logged
        found = _logged(history, *at) if at else _measured(evaluation, metric.at)
        if found is None:
            where = log if at else source
            raise UserError(f"{where}: {metric.at}: not there, or no number; mend metrics.{title}")
        scores[title] = found
    return scores


def _logged(history: History, name: str, share: float | None) -> float | None:
    return history.last(name) if share is None else history.late(name, share)


def _measured(evaluation: Mapping[str, Any], at: str) -> float | None:
    found: Any = evaluation
    for part in at.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    found = found.get("value") if isinstance(found, dict) else found
    return float(found) if isinstance(found, int | float) else None
