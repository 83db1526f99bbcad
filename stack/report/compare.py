"""``stack report RUN RUN ...``: several runs beside each other on one page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from stack.report.curves import SERIES, Chart, chart_svg
from stack.report.folder import RunFolder, flat, open_run
from stack.report.level_charts import level_figures
from stack.report.levels import read_levels
from stack.report.metrics_table import METRICS, Metric, interval_html, number
from stack.report.panels import PANELS, Panel
from stack.report.published_table import published_html
from stack.report.sections import (
    alerts_html,
    facts_of,
    grids_html,
    page,
    recipe_html,
    wide,
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
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("command line: a run is given twice; give each of them once")
    runs = named(open_run(path) for path in paths)
    body = [
        _header(runs),
        alerts_html(runs),
        _measured(runs),
        _facts(runs),
        grids_html(runs),
        _curves(runs),
        _levels(runs),
        _differences(runs),
        *(recipe_html(run, name) for name, run in runs.items()),
    ]
    shared = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    path = out or shared / "comparison.html"
    title = f"{len(runs)} runs: {', '.join(runs)}"
    write_atomic(path, page(title, "\n".join(part for part in body if part)))
    return path


def named(runs: Any) -> dict[str, RunFolder]:
    """Runs by name; by folder, where two have one name."""
    opened = list(runs)
    names = [run.name for run in opened]
    if len(set(names)) < len(names):
        names = [run.path.name for run in opened]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in opened]
    return dict(zip(names, opened, strict=True))


def key(name: str, position: int) -> str:
    """A run's name beside its colour."""
    series = position % len(SERIES) + 1
    return (
        f'<span class="key"><i style="background:var(--series-{series})"></i>{escape(name)}</span>'
    )


def _header(runs: Mapping[str, RunFolder]) -> str:
    keys = "".join(key(name, position) for position, name in enumerate(runs))
    return f'<header><h1>{len(runs)} runs compared</h1><p class="lead runs">{keys}</p></header>'


def _measured(runs: Mapping[str, RunFolder]) -> str:
    """A table per suite: runs are columns, the best figure of each row is bold."""
    suites = list(dict.fromkeys(suite for run in runs.values() for suite in run.evaluations))
    if not suites:
        how = "python -m stack evaluate RUN"
        return f"<h2>Measures</h2><p>None is evaluated yet: <code>{how}</code> does it.</p>"
    parts = []
    for suite in suites:
        found = {name: run.evaluations.get(suite, {}) for name, run in runs.items()}
        heading = f"<h3>{escape(suite)}</h3>" if len(suites) > 1 else ""
        students = {name: evaluation.get("student", {}) for name, evaluation in found.items()}
        parts.append(f"{heading}{_suite_table(found)}{_samples(found)}")
        parts.append(published_html(suite, students))
    return f"<h2>Measures</h2>{''.join(parts)}"


def _suite_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    columns = {name: evaluation.get("student", {}) for name, evaluation in found.items()}
    teachers = [evaluation["teacher"] for evaluation in found.values() if "teacher" in evaluation]
    heads = "".join(f"<th>{key(name, i)}</th>" for i, name in enumerate(columns))
    rows = [
        _metric_row(metric, teachers[:1], list(columns.values()))
        for metric in METRICS
        if any(metric.key in row for row in columns.values())
    ]
    teacher = "<th>teacher</th>" if teachers else ""
    return wide(
        f"<table><thead><tr><th></th>{teacher}{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _metric_row(
    metric: Metric, teachers: Sequence[Mapping[str, Any]], students: Sequence[Mapping[str, Any]]
) -> str:
    values = [row[metric.key] for row in students if metric.key in row]
    best = max(values, key=lambda value: metric.better * value) if metric.better else None
    cells = []
    for row in (*teachers, *students):
        value = row.get(metric.key)
        bold = value is not None and value == best and len(set(values)) > 1 and row not in teachers
        text = "–" if value is None else number(value, metric.digits)
        shown = text + interval_html(row, metric)
        cells.append(f'<td class="best">{shown}</td>' if bold else f"<td>{shown}</td>")
    return f"<tr><th>{escape(metric.title)}{metric.arrow}</th>{''.join(cells)}</tr>"


def _samples(found: Mapping[str, Mapping[str, Any]]) -> str:
    told = [
        f"{name}: {evaluation['samples']:,} pictures, seed {evaluation.get('seed', 0)}"
        for name, evaluation in found.items()
        if "samples" in evaluation
    ]
    teacher = next((e["teacher_sampler"] for e in found.values() if "teacher_sampler" in e), "")
    told += [f"teacher: {teacher}"] if teacher else []
    if not told:
        return ""
    brackets = ""
    if any("intervals" in evaluation.get("student", {}) for evaluation in found.values()):
        brackets = (
            " Brackets: 95% intervals over samples, not over training runs; dotted: fewer than "
            "10,000 samples."
        )
    return f'<p class="note">{escape("; ".join(told))}.{brackets}</p>'


def _facts(runs: Mapping[str, RunFolder]) -> str:
    """Iterations, time, throughput and restarts, a column per run."""
    columns = [dict(facts_of(run)) for run in runs.values()]
    terms = list(dict.fromkeys(term for column in columns for term in column))
    heads = "".join(f"<th>{key(name, i)}</th>" for i, name in enumerate(runs))
    rows = "".join(
        f"<tr><th>{escape(term)}</th>"
        + "".join(f"<td>{escape(column.get(term, '–'))}</td>" for column in columns)
        + "</tr>"
        for term in terms
    )
    table = f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<h2>How they ran</h2>{wide(table)}"


def _curves(runs: Mapping[str, RunFolder]) -> str:
    figures = []
    for panel in PANELS:
        for figure, title in _lines(panel, runs).items():
            figures.append(_chart(panel, figure, title, runs))
    legend = "".join(key(name, position) for position, name in enumerate(runs))
    return (
        f'<h2>Curves</h2><p class="note reading">{legend} Faint: every logged row. Strong: its '
        f'moving average.</p><div class="charts">{"".join(figures)}</div>'
    )


def _lines(panel: Panel, runs: Mapping[str, RunFolder]) -> dict[str, str]:
    """Figure -> title of the charts that a panel makes: one for each of its lines."""
    if panel.band:
        lines = {f"{panel.band}/p50": f"{panel.title}, median"}
    elif panel.prefix:
        named = {figure for other in PANELS for figure in other.curves}
        found = dict.fromkeys(
            figure for run in runs.values() for figure in run.history.keys(panel.prefix)
        )
        lines = {
            figure: f"{panel.title}: {figure.removeprefix(panel.prefix)}"
            for figure in found
            if figure not in named
        }
    elif len(panel.curves) == 1:
        lines = dict.fromkeys(panel.curves, panel.title)
    else:
        lines = {figure: f"{panel.title}: {name}" for figure, name in panel.curves.items()}
    return {
        figure: title
        for figure, title in lines.items()
        if any(run.history.curve(figure) for run in runs.values())
    }


def _chart(panel: Panel, figure: str, title: str, runs: Mapping[str, RunFolder]) -> str:
    chart = Chart(
        panel.y_label,
        lines=[run.history.curve(figure) for run in runs.values()],
        exact=panel.exact,
        log=panel.log,
        reference=panel.reference,
        limits=panel.limits,
    )
    note = f"<p>{escape(panel.note)}</p>" if panel.note and not panel.band else ""
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3></figcaption>"
        f"{chart_svg(chart, salt=title)}{note}</figure>"
    )


def _levels(runs: Mapping[str, RunFolder]) -> str:
    tables = {name: read_levels(run.history) for name, run in runs.items()}
    figures = level_figures({name: found for name, found in tables.items() if found})
    return f"<h2>Ratio and weight by noise level</h2>{figures}" if figures else ""


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
    heads = "".join(f"<th>{key(name, i)}</th>" for i, name in enumerate(runs))
    rows = "".join(
        f"<tr><th><code>{escape(field)}</code></th>"
        + "".join(f"<td>{escape(_value(recipe, field))}</td>" for recipe in recipes)
        + "</tr>"
        for field in differ
    )
    table = f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<h2>Recipes</h2><p>Where they differ:</p>{wide(table)}"


def _value(recipe: Mapping[str, Any], field: str) -> str:
    if field not in recipe:
        return "–"
    return yaml.safe_dump(recipe[field], default_flow_style=True).removesuffix("...\n").strip()
