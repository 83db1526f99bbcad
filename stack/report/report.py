"""``stack report``: a run folder as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from stack.report.history import History, read_history
from stack.report.metrics_table import number, provenance_html, table_html, tiles_html
from stack.report.panels import charts_html
from stack.report.style import CSS
from stack.util.errors import UserError
from stack.util.files import read_json, write_atomic

DIVERGENCE_TITLES = {
    "reverse_kl": "reverse KL",
    "softened_reverse_kl": "softened reverse KL",
    "jensen_shannon": "Jensen–Shannon",
    "squared_hellinger": "squared Hellinger",
    "forward_kl": "forward KL",
    "jeffreys": "Jeffreys",
}
_WIDEST = 1600
"""Pixels; pictures wider than this are scaled down and stored with losses."""


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder, and return its path (default RUN/report.html).

    Reads recipe.yaml, metrics.jsonl, evaluation.json and samples/. The last two may be missing:
    the page then says how to make them.

    Raises:
        UserError: ``run`` has no readable metrics.jsonl, recipe.yaml or evaluation.json.
    """
    history = read_history(run / "metrics.jsonl")
    recipe_text, recipe = _recipe(run / "recipe.yaml")
    scores = run / "evaluation.json"
    evaluation: dict[str, Any] = read_json(scores) if scores.exists() else {}
    name = str(recipe.get("name", run.name))
    body = [
        _header(name, recipe),
        tiles_html(evaluation),
        _results(run, evaluation),
        _training(history, recipe),
        _recipe_section(recipe_text),
    ]
    path = out or run / "report.html"
    write_atomic(path, _page(name, "\n".join(part for part in body if part)))
    return path


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def _recipe(path: Path) -> tuple[str, dict[str, Any]]:
    """The resolved recipe as text and as plain values; empty if the folder has none."""
    if not path.exists():
        return "", {}
    text = path.read_text()
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML ({reason}); restore it") from None
    if not isinstance(recipe, dict):
        raise UserError(f"{path}: not a recipe (no fields); restore it")
    return text, recipe


def _header(name: str, recipe: Mapping[str, Any]) -> str:
    facts = []
    if divergence := recipe.get("divergence"):
        title = DIVERGENCE_TITLES.get(divergence, divergence.replace("_", " "))
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


def _results(run: Path, evaluation: Mapping[str, Any]) -> str:
    """The table and the pictures, side by side where there is room for both."""
    scatter = sorted((run / "samples").glob("modes*.png"))
    quality = "" if scatter and not evaluation else _quality(run, evaluation)
    sections = f"{quality}{_pictures(run, scatter)}"
    return f'<div class="pair">{sections}</div>' if evaluation else sections


def _quality(run: Path, evaluation: Mapping[str, Any]) -> str:
    if evaluation:
        inside = table_html(evaluation) + provenance_html(evaluation)
    else:
        how = f"python -m stack evaluate {escape(str(run))}"
        inside = f"<p>Not evaluated yet: <code>{how}</code> measures both.</p>"
    return f"<section><h2>Teacher and student</h2>{inside}</section>"


def _pictures(run: Path, scatter: Sequence[Path]) -> str:
    """The newest grid, the student through training, and scatter plots of 2-D samples."""
    folder = run / "samples"
    newest = sorted(folder.glob("grid*.png"), key=lambda path: (path.stat().st_mtime, path.name))[
        -1:
    ]
    parts = [_grid(path) for path in newest]
    parts += [
        f'<figure class="scatter">{_image(path, "Samples in two dimensions")}</figure>'
        for path in scatter
    ]
    if not parts:
        how = f"python -m stack sample {escape(str(run))}"
        parts = [f"<p>No sample grid yet: <code>{how}</code> draws one.</p>"]
    stages = sorted(folder.glob("student-*.png"))
    if len(stages) > 1:
        chosen = [stages[round(i)] for i in np.linspace(0, len(stages) - 1, min(4, len(stages)))]
        parts.append(f'<div class="progress">{"".join(_stage(path) for path in chosen)}</div>')
    return f"<section><h2>Samples</h2>{''.join(parts)}</section>"


def _grid(path: Path) -> str:
    """The grid with the prompts that stand in the JSON file beside it."""
    beside = path.with_suffix(".json")
    drawn = read_json(beside) if beside.exists() else {}
    caption = "Teacher above, one-step student below; same prompt and noise in a column."
    if prompts := drawn.get("prompts"):
        caption += f" Prompts: {', '.join(prompts)}."
    if "seed" in drawn:
        caption += f" Seed {drawn['seed']}."
    image = _image(path, "Pictures by teacher and student")
    return f'<figure class="grid">{image}<figcaption>{escape(caption)}</figcaption></figure>'


def _stage(path: Path) -> str:
    step = path.stem.removeprefix("student-").lstrip("0") or "0"
    caption = f"<figcaption>The student after {escape(step)} iterations</figcaption>"
    return f'<figure class="grid">{_image(path, f"Student after {step}")}{caption}</figure>'


def _image(path: Path, alt: str) -> str:
    """An img element that holds the picture itself."""
    data, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if width > _WIDEST:
            height, width = round(height * _WIDEST / width), _WIDEST
            buffer = io.BytesIO()
            image.convert("RGB").resize((width, height)).save(buffer, "JPEG", quality=88)
            data, kind = buffer.getvalue(), "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{escape(alt)}" width="{width}" height="{height}">'


def _training(history: History, recipe: Mapping[str, Any]) -> str:
    facts = "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(text)}</dd></div>"
        for term, text in _facts(history, recipe)
    )
    how = "Faint: every logged row. Strong: its moving average."
    if history.restarts:
        how += " Dotted uprights: restarts."
    return (
        f'<h2>Training</h2><dl>{facts}</dl><p class="note reading">{how}</p>{charts_html(history)}'
    )


def _facts(history: History, recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    step, total = history.rows[-1]["step"], recipe.get("iterations")
    done = number(step, 0) if total in (None, step) else f"{step:,} of {total:,}"
    facts = [("Iterations", done)]
    if every := recipe.get("student_every"):
        facts.append(("Updates of the student", number(step // every, 0)))
    if (seconds := history.last("time")) is not None:
        facts.append(("Time", duration(seconds)))
    for key, term, form in (
        ("images_per_second", "Images per second", "{:,.1f}"),
        ("data_wait", "Waiting for data", "{:.1%}"),
    ):
        if curve := history.curve(key):
            facts.append((term, form.format(float(np.median(curve.values)))))
    if (skipped := history.last("skipped")) is not None:
        facts.append(("Iterations skipped", number(skipped, 0)))
    after = ", ".join(f"{state:,}" for state in history.restarts)
    facts.append(
        ("Restarts", f"{len(history.restarts)}, after iteration {after}" if after else "0")
    )
    if history.torn:
        facts.append(("Log lines unreadable", number(history.torn, 0)))
    return facts


def duration(seconds: float) -> str:
    """Seconds in words, two units at most: 42 s, 7 min 5 s, 3 h 20 min, 2 d 4 h."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    if not whole:
        return "0 s"
    first = next(i for i, (_, size) in enumerate(units) if whole >= size)
    parts = []
    for unit, size in units[first : first + 2]:
        parts.append(f"{whole // size} {unit}")
        whole %= size
    return " ".join(part for part in parts if not part.startswith("0 "))


def _recipe_section(text: str) -> str:
    if not text:
        return ""
    return (
        "<h2>Recipe</h2><details><summary>Every field as the run resolved it</summary>"
        f"<pre>{escape(text)}</pre></details>"
    )
