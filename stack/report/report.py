"""``stack report``: a run folder as one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from stack.report.canvas import DIVERGENCES
from stack.report.folder import RunFolder, open_run
from stack.report.level_charts import levels_html
from stack.report.metrics_table import (
    head_html,
    models_of,
    provenance_html,
    real_html,
    table_html,
    tiles_html,
)
from stack.report.panels import charts_html
from stack.report.published_table import published_html
from stack.report.sections import (
    alerts_html,
    facts_of,
    grid_html,
    image_html,
    newest_grid,
    page,
    recipe_html,
    scatter_html,
    scatters,
)
from stack.util.files import write_atomic


def write_report(path: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder, and return its path (default RUN/report.html).

    Reads recipe.yaml, metrics.jsonl, evaluation.json, evaluations/ and samples/. The last three
    may be missing: the page then says how to make them.

    Raises:
        UserError: ``path`` has no readable metrics.jsonl, recipe.yaml or evaluation.json.
    """
    run = open_run(path)
    body = [
        _header(run.name, run.recipe),
        tiles_html(run.evaluation, _newest(run)),
        alerts_html({run.name: run}),
        _results(run),
        *(
            published_html(one.get("suite_of", suite), {run.name: one.get("student", {})})
            for suite, one in run.evaluations.items()
        ),
        _training(run),
        levels_html({run.name: run}),
        f"<h2>Recipe</h2>{recipe_html(run)}" if run.text else "",
    ]
    to = out or path / "report.html"
    write_atomic(to, page(run.name, "\n".join(part for part in body if part)))
    return to


def _header(name: str, recipe: Mapping[str, Any]) -> str:
    facts = []
    if divergence := recipe.get("divergence"):
        title = DIVERGENCES.get(divergence, divergence.replace("_", " "))
        facts.append(f"One-step student by {title} divergence")
    teacher = recipe.get("teacher", {})
    if teacher:
        facts.append(f"teacher {teacher.get('path', teacher.get('kind', ''))}")
    if "guidance" in recipe:
        facts.append(f"guidance {recipe['guidance']:g}")
    if "seed" in recipe:
        facts.append(f"seed {recipe['seed']}")
    lead = f'<p class="lead">{escape(", ".join(facts))}</p>' if facts else ""
    return f"<header><h1>{escape(name)}</h1>{lead}</header>"


def _results(run: RunFolder) -> str:
    """The table and the pictures, side by side where there is room for both."""
    scatter = scatters(run.path)
    quality = "" if scatter and not run.evaluations else _quality(run)
    sections = f"{quality}{_pictures(run.path, scatter)}"
    return f'<div class="pair">{sections}</div>' if run.evaluations else sections


def _newest(run: RunFolder) -> str:
    """The suite of the newest evaluation, where there are several."""
    if len(run.evaluations) < 2:
        return ""
    return next((s for s, found in run.evaluations.items() if found is run.evaluation), "")


def _quality(run: RunFolder) -> str:
    """A table per suite, with a column of every model that it measured."""
    if run.evaluations:
        several = len(run.evaluations) > 1
        inside = "".join(
            (f"<h3>{escape(suite)}</h3>" if several else "") + _suite(run.name, evaluation)
            for suite, evaluation in run.evaluations.items()
        )
    else:
        how = f"python -m stack evaluate {escape(str(run.path))}"
        inside = f"<p>Not evaluated yet: <code>{how}</code> measures both.</p>"
    return f"<section><h2>Teacher and student</h2>{inside}</section>"


def _suite(name: str, evaluation: Mapping[str, Any]) -> str:
    models = {
        head_html(f"<b>{escape(model)}</b>", figures): figures
        for model, figures in models_of(evaluation).items()
    }
    table = table_html(models, marked=models)
    return table + real_html(evaluation) + provenance_html({name: evaluation})


def _pictures(run: Path, scatter: Sequence[Path]) -> str:
    """The newest grid, the student through training, and scatter plots of 2-D samples."""
    grid = newest_grid(run)
    parts = [grid_html(grid)] if grid else []
    parts += map(scatter_html, scatter)
    if not parts:
        how = f"python -m stack sample {escape(str(run))}"
        parts = [f"<p>No sample grid yet: <code>{how}</code> draws one.</p>"]
    stages = sorted((run / "samples").glob("student-*.png"))
    if len(stages) > 1:
        chosen = [stages[round(i)] for i in np.linspace(0, len(stages) - 1, min(4, len(stages)))]
        parts.append(f'<div class="progress">{"".join(_stage(path) for path in chosen)}</div>')
    return f"<section><h2>Samples</h2>{''.join(parts)}</section>"


def _stage(path: Path) -> str:
    step = path.stem.removeprefix("student-").lstrip("0") or "0"
    caption = f"<figcaption>The student after {escape(step)} iterations</figcaption>"
    return f'<figure class="grid">{image_html(path, f"Student after {step}")}{caption}</figure>'


def _training(run: RunFolder) -> str:
    facts = "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(text)}</dd></div>" for term, text in facts_of(run)
    )
    how = "Faint: every logged row. Strong: its moving average."
    if run.history.restarts:
        how += " Dotted uprights: restarts."
    charts = charts_html({run.name: run.history})
    return f'<h2>Training</h2><dl>{facts}</dl><p class="note reading">{how}</p>{charts}'
