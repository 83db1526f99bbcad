"""``stack report RUN RUN ...``: several runs beside each other on one page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from stack.report.folder import RunFolder, flat, open_run
from stack.report.level_charts import levels_html
from stack.report.metrics_table import head_html, models_of, provenance_html, table_html
from stack.report.panels import charts_html
from stack.report.published_table import published_html
from stack.report.sections import (
    alerts_html,
    columns_html,
    facts_of,
    grids_html,
    key,
    page,
    recipe_html,
    scatters,
)
from stack.util.errors import UserError
from stack.util.files import write_atomic

_SHOWN = ("name", "out")
"""Fields that differ between any two runs."""


def write_comparison(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the comparison of run folders, and return its path (default: comparison.html in the
    folder that they share).

    Raises:
        UserError: one of them is given twice, or cannot be read.
    """
    given_once(paths)
    opened = [open_run(path) for path in paths]
    runs = dict(zip(told_apart([(run.name, run.path) for run in opened]), opened, strict=True))
    body = [
        _header(runs),
        alerts_html(runs),
        _measured(runs),
        _facts(runs),
        grids_html(runs),
        _curves(runs),
        levels_html(runs),
        _differences(runs),
        *(recipe_html(run, name) for name, run in runs.items()),
    ]
    shared = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    path = out or shared / "comparison.html"
    title = f"{len(runs)} runs: {', '.join(runs)}"
    write_atomic(path, page(title, "\n".join(part for part in body if part)))
    return path


def given_once(paths: Sequence[Path]) -> None:
    """Raises: UserError: one of the runs is given twice."""
    seen: set[Path] = set()
    for path in paths:
        if (place := path.resolve()) in seen:
            raise UserError(f"command line: {path}: given twice; give each run once")
        seen.add(place)


def told_apart(runs: Sequence[tuple[str, Path]]) -> list[str]:
    """What to call runs, each given once, by name and folder: the names; where two are equal, the
    folders' names; where two of those are equal too, the whole paths."""
    names, paths = [name for name, _ in runs], [path for _, path in runs]
    choices = names, [path.name for path in paths]
    unlike = (choice for choice in choices if len({*choice}) == len(runs))
    return next(unlike, [str(path) for path in paths])


def _header(runs: Mapping[str, RunFolder]) -> str:
    legend = "".join(_heads(runs))
    return f'<header><h1>{len(runs)} runs compared</h1><p class="lead runs">{legend}</p></header>'


def _heads(runs: Iterable[str]) -> list[str]:
    """Names with their colours, above the columns of a table."""
    return [key(name, position) for position, name in enumerate(runs)]


def _measured(runs: Mapping[str, RunFolder]) -> str:
    """A table per suite: runs are columns, the best figure of each row is bold."""
    suites = list(dict.fromkeys(suite for run in runs.values() for suite in run.evaluations))
    if not suites:
        if all(scatters(run.path) for run in runs.values()):
            return ""  # Points in the plane have no suite.
        how = "python -m stack evaluate RUN"
        return f"<h2>Measures</h2><p>None is evaluated yet: <code>{how}</code> does it.</p>"
    parts = []
    for suite in suites:
        found = {name: run.evaluations.get(suite, {}) for name, run in runs.items()}
        heading = f"<h3>{escape(suite)}</h3>" if len(suites) > 1 else ""
        students = {name: evaluation.get("student", {}) for name, evaluation in found.items()}
        parts.append(f"{heading}{_suite_table(runs, suite)}{provenance_html(found)}")
        whole = next((one["suite_of"] for one in found.values() if "suite_of" in one), suite)
        parts.append(published_html(whole, students))
    return f"<h2>Measures</h2>{''.join(parts)}"


def _suite_table(runs: Mapping[str, RunFolder], suite: str) -> str:
    """Every kind of teacher, as the first run measured it that did, and the runs' students."""
    teachers: dict[tuple[str, str, str], tuple[str, Mapping[str, Any]]] = {}
    students = {}
    for head, (name, run) in zip(_heads(runs), runs.items(), strict=True):
        models = models_of(run.evaluations.get(suite, {}))
        student = models.pop("student", {})
        students[head_html(head, student)] = student
        for model, figures in models.items():
            kind = model, figures.get("sampler", ""), str(run.recipe.get("teacher"))
            teachers.setdefault(kind, (name, figures))
    several = len({network for _, _, network in teachers}) > 1
    columns = {
        head_html(f"<b>{escape(model)}</b>", figures, *([f"of {name}"] if several else [])): figures
        for (model, _, _), (name, figures) in teachers.items()
    }
    return table_html(columns | students, marked=students)


def _facts(runs: Mapping[str, RunFolder]) -> str:
    """Iterations, time, throughput and restarts, a column per run."""
    columns = [dict(facts_of(run)) for run in runs.values()]
    terms = dict.fromkeys(term for column in columns for term in column)
    rows = {escape(term): [escape(c.get(term, "–")) for c in columns] for term in terms}
    return f"<h2>How they ran</h2>{columns_html(_heads(runs), rows)}"


def _curves(runs: Mapping[str, RunFolder]) -> str:
    charts = charts_html({name: run.history for name, run in runs.items()})
    return (
        f'<h2>Curves</h2><p class="runs">{"".join(_heads(runs))}</p><p class="note">Faint: every '
        f"logged row. Strong: its moving average.</p>{charts}"
    )


def _differences(runs: Mapping[str, RunFolder]) -> str:
    """The fields of the resolved recipes in which the runs differ."""
    recipes = [flat(run.recipe) for run in runs.values()]
    fields = dict.fromkeys(field for recipe in recipes for field in recipe)
    differ = [
        field
        for field in fields
        if field not in _SHOWN and len({_value(recipe, field) for recipe in recipes}) > 1
    ]
    if not differ:
        return "<h2>Recipes</h2><p>The recipes are the same but for the names.</p>"
    rows = {
        f"<code>{escape(field)}</code>": [escape(_value(recipe, field)) for recipe in recipes]
        for field in differ
    }
    return f"<h2>Recipes</h2><p>Where they differ:</p>{columns_html(_heads(runs), rows)}"


def _value(recipe: Mapping[str, Any], field: str) -> str:
    if field not in recipe:
        return "–"
    return yaml.safe_dump(recipe[field], default_flow_style=True).removesuffix("...\n").strip()
