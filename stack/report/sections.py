"""Parts of a page that the report of one run and the comparison of several share."""

from __future__ import annotations

import base64
import io
from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from stack.report.alerts import alerts
from stack.report.curves import SERIES
from stack.report.folder import RunFolder
from stack.report.style import CSS
from stack.util.files import read_json

_NAMED = 3
"""Restarts that are named, of a run with more the last ones."""
_WIDEST = 1600
"""Pixels; pictures wider than this are scaled down and stored with losses."""


def page(title: str, body: str) -> str:
    """A whole page that needs nothing beside it."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def key(name: str, position: int) -> str:
    """A name beside the colour of that position, counted from 0."""
    colour = f"var(--series-{position % len(SERIES) + 1})"
    return f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>'


def keys(names: Sequence[str], shown: Container[str] | None = None) -> str:
    """A legend. Args: shown: those of the names that are in it; all if None."""
    chosen = [key(n, i) for i, n in enumerate(names) if shown is None or n in shown]
    return f"<p>{''.join(chosen)}</p>"


def wide(table: str) -> str:
    """A table that scrolls by itself where the page is narrower."""
    return f'<div class="wide">{table}</div>'


def columns_html(heads: Iterable[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table. Args: heads: HTML above the columns. rows: HTML in front of a row -> its cells,
    HTML too."""
    above = "".join(f"<th>{head}</th>" for head in heads)
    below = "".join(
        f"<tr><th>{title}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for title, cells in rows.items()
    )
    return wide(f"<table><thead><tr><th></th>{above}</tr></thead><tbody>{below}</tbody></table>")


def alerts_html(runs: Mapping[str, RunFolder]) -> str:
    """What the ends of the logs warn of; empty if nothing."""
    items = [
        f"<li><b>{escape(f'{name}: ' if len(runs) > 1 else '')}{escape(sign)}.</b> "
        f"{escape(words)}</li>"
        for name, run in runs.items()
        for sign, words in alerts(run.history)
    ]
    return (
        f'<section class="alerts"><h2>Look at this</h2><ul>{"".join(items)}</ul></section>'
        if items
        else ""
    )


def facts_of(run: RunFolder) -> list[tuple[str, str]]:
    """How a run went: term and words."""
    history, recipe = run.history, run.recipe
    step, total = history.rows[-1]["step"], recipe.get("iterations")
    done = f"{step:,}" if total in (None, step) else f"{step:,} of {total:,}"
    facts = [("Iterations", done)]
    if every := recipe.get("student_every"):
        facts.append(("Updates of the student", f"{step // every:,}"))
    if (seconds := history.last("time")) is not None:
        facts.append(("Time", duration(seconds)))
    for key, term, form in (
        ("images_per_second", "Images per second", "{:,.1f}"),
        ("data_wait", "Waiting for data", "{:.1%}"),
    ):
        if curve := history.curve(key):
            facts.append((term, form.format(float(np.median(curve.values)))))
    if (skipped := history.last("skipped")) is not None:
        facts.append(("Iterations skipped", f"{skipped:,.0f}"))
    facts.append(("Restarts", _restarts(history.restarts)))
    if history.torn:
        facts.append(("Log lines unreadable", f"{history.torn:,}"))
    return facts


def _restarts(after: Sequence[int]) -> str:
    """How many, and the last ones of them."""
    if not after:
        return "0"
    last = ", ".join(f"{state:,}" for state in after[-_NAMED:])
    more = "…, " if len(after) > _NAMED else ""
    return f"{len(after)}, after iteration {more}{last}"


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


def newest_grid(run: Path) -> Path | None:
    """The sample grid that was drawn last."""
    grids = (run / "samples").glob("grid*.png")
    return max(grids, key=lambda path: (path.stat().st_mtime, path.name), default=None)


def scatters(run: Path) -> list[Path]:
    """Pictures of samples in the plane."""
    return sorted((run / "samples").glob("modes*.png"))


def said_html(title: str, words: str) -> str:
    """A chart's place, with words where there is nothing to draw."""
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3></figcaption><p>{escape(words)}</p></figure>"
    )


def grids_html(runs: Mapping[str, RunFolder]) -> str:
    """The newest grid, or the points in the plane, of every run that has any."""
    parts = []
    for name, run in runs.items():
        grid = newest_grid(run.path)
        inside = grid_html(grid) if grid else "".join(map(scatter_html, scatters(run.path)))
        if inside:
            parts.append(f"<h3>{escape(name)}</h3>{inside}")
    return f'<h2>Samples</h2><div class="grids">{"".join(parts)}</div>' if parts else ""


def grid_html(path: Path) -> str:
    """A grid with the prompts that stand in the JSON file beside it."""
    beside = path.with_suffix(".json")
    drawn = read_json(beside) if beside.exists() else {}
    caption = "Teacher above, one-step student below; same prompt and noise in a column."
    if prompts := drawn.get("prompts"):
        caption += f" {_told(prompts)}."
    if "seed" in drawn:
        caption += f" Seed {drawn['seed']}."
    image = image_html(path, "Pictures by teacher and student")
    return f'<figure class="grid">{image}<figcaption>{escape(caption)}</figcaption></figure>'


def _told(prompts: Sequence[str]) -> str:
    return f"Prompts: {', '.join(prompts)}"


def scatter_html(path: Path) -> str:
    """Points in the plane."""
    return f'<figure class="scatter">{image_html(path, "Samples in two dimensions")}</figure>'


def image_html(path: Path, alt: str) -> str:
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


def recipe_html(run: RunFolder, name: str = "") -> str:
    """Every field of a run's recipe, folded."""
    if not run.text:
        return ""
    whose = f"{escape(name)}: every" if name else "Every"
    return (
        f"<details><summary>{whose} field as the run resolved it</summary>"
        f"<pre>{escape(run.text)}</pre></details>"
    )
