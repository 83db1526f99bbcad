"""The numbers of `data_prep stats` as one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from data_prep.stats.charts import bar, histogram_svg
from data_prep.stats.funnel import Step, condition, funnel, share
from data_prep.stats.sheet import Tile
from data_prep.stats.style import CSS

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Nothing is loaded and nothing runs, whatever a caption holds."""

_CHARTS = (
    ("captions", "words", "Words a caption", "words"),
    ("captions", "tokens", "Tokens a caption", "tokens"),
    ("resolutions", "shorter_side", "Shorter side of the original", "pixels"),
    ("resolutions", "aspect_ratio", "Shape of the original", "width / height"),
)
_LONGEST = 300
"""Characters of a caption in the sheet."""
_SMALL = 96


def page(name: str, told: Mapping[str, Any], sheet: Sequence[Tile]) -> str:
    """The whole page."""
    reasons, hosts = _reasons(told), _hosts(told)
    body = [
        _header(name, told),
        _funnel(told),
        f'<div class="pair">{reasons}{hosts}</div>' if reasons or hosts else "",
        _looks(told),
        _shards(told),
        _sheet(sheet, told),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}</title>\n<style>{CSS}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _header(name: str, told: Mapping[str, Any]) -> str:
    states = told["states"]
    figures = [(f"{told['rows']:,}", "rows")]
    if told["dropped"]:
        figures.append((f"{told['kept']:,}", "kept by the filter"))
    if told["shards"] or states:
        figures.append((f"{told['samples']:,}", f"samples in {told['shards']:,} shards"))
    if tried := sum(states.values()) - states.get("pending", 0):
        figures.append((share(states["saved"], tried), "of the rows tried were saved"))
    tiles = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(what)}</span></div>'
        for figure, what in figures
    )
    alert = "".join(f"<p>{escape(said)}</p>" for said in condition(told))
    alert = f'<div class="alert">{alert}</div>' if alert else ""
    return f'<header><h1>{escape(name)}</h1>{alert}<div class="tiles">{tiles}</div></header>'


def _row(label: str, cell: str, count: int, whole: int, kind: str = "") -> str:
    start = f'<tr class="{kind}">' if kind else "<tr>"
    head = f'<th scope="row"><bdi>{escape(label)}</bdi></th>'
    return f"{start}{head}{cell}<td>{count:,}</td><td>{share(count, whole)}</td></tr>"


def _funnel(told: Mapping[str, Any]) -> str:
    steps = funnel(told)
    rows = "".join(_step(step, told["rows"]) for step in steps)
    return f"<section><h2>From rows to samples</h2><table>{rows}</table></section>"


def _step(step: Step, whole: int) -> str:
    kind = "lost" if step.lost else "left"
    cell = bar(step.count, whole, start=step.start, kind=kind)
    return _row(step.label, cell, step.count, whole, "lost" if step.lost else "whole")


def _reasons(told: Mapping[str, Any]) -> str:
    bodies = []
    for state, reasons in told["reasons"].items():
        whole = told["states"][state]
        rows = [
            _row(reason, bar(count, whole, kind="lost"), count, whole)
            for reason, count in reasons.items()
        ]
        title = f"{escape(state)}, {whole:,} rows"
        head = f'<tr class="group"><th colspan="4" scope="rowgroup">{title}</th></tr>'
        bodies.append(f"<tbody>{head}{''.join(rows)}</tbody>")
    if not bodies:
        return ""
    return f"<section><h2>Why rows have no picture</h2><table>{''.join(bodies)}</table></section>"


def _hosts(told: Mapping[str, Any]) -> str:
    if not told["hosts"]:
        return ""
    rows = "".join(
        f'<tr><th scope="row"><bdi>{escape(host["host"])}</bdi></th>'
        f"{bar(host['saved'], host['rows'], kind='good')}"
        f"<td>{host['rows']:,}</td><td>{share(host['saved'], host['rows'])}</td></tr>"
        for host in told["hosts"]
    )
    head = '<th scope="col">host</th><th></th><th scope="col">rows</th><th scope="col">saved</th>'
    table = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<section><h2>Hosts with most rows</h2><table class="hosts">{table}</table></section>'


def _looks(told: Mapping[str, Any]) -> str:
    figures = [
        _chart(told[group][name], title, unit)
        for group, name, title, unit in _CHARTS
        if name in told[group]
    ]
    if not figures:
        return ""
    said = f"Of {told['looked_at']:,} samples looked at, spread evenly over the shards."
    if words := told["captions"].get("words"):
        empty = share(told["empty_captions"], words["samples"])
        again = share(told["duplicate_captions"], 1)
        said += f" {empty} of the captions are empty; {again} of the others repeat one before."
    return (
        f'<section><h2>Pictures and captions</h2><p class="note">{said}</p>'
        f'<div class="charts">{"".join(figures)}</div></section>'
    )


def _chart(found: Mapping[str, Any], title: str, unit: str) -> str:
    figures = f"{unit}; median {found['median']:.4g}, mean {found['mean']:.4g}"
    if found["median"] == found["mean"]:
        figures = f"{unit}; median and mean {found['median']:.4g}"
    chart = histogram_svg(found, unit)
    return f"<figure><h3>{escape(title)}</h3><p>{escape(figures)}</p>{chart}</figure>"


def _shards(told: Mapping[str, Any]) -> str:
    samples = told["samples"]
    fields = "".join(
        _row(name, bar(count, samples), count, samples) for name, count in told["fields"].items()
    )
    counts = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{count:,}</td></tr>'
        for name, count in told["counts"].items()
    )
    titled = (("Fields of the samples", fields), ("Met in preparation", counts))
    sections = "".join(
        f"<section><h2>{title}</h2><table>{rows}</table></section>"
        for title, rows in titled
        if rows
    )
    return f'<div class="pair">{sections}</div>' if sections else ""


def _sheet(sheet: Sequence[Tile], told: Mapping[str, Any]) -> str:
    if not sheet:
        return ""
    side = told["resolution"]
    size = f" The pictures in the shards are squares of {side} pixels." if side else ""
    return (
        f'<section><h2>Some samples</h2><p class="note">{len(sheet):,} of {told["samples"]:,}, '
        f'one at random of each equal share of the shards.{size}</p><div class="sheet">'
        f"{''.join(map(_tile, sheet))}</div></section>"
    )


def _tile(tile: Tile) -> str:
    parts = []
    if picture := tile.picture:
        small = ' class="small"' if max(picture.width, picture.height) < _SMALL else ""
        parts.append(
            f'<img{small} src="{picture.source}" alt="" width="{picture.width}" '
            f'height="{picture.height}">'
        )
    if tile.garbled:
        parts.append('<p class="note">The picture cannot be decoded.</p>')
    parts.append(f'<p dir="auto">{_cut(tile.caption)}</p>')
    if tile.original:
        parts.append(f'<p class="note" dir="auto">was: {_cut(tile.original)}</p>')
    parts.append(f"<small>{escape(tile.key)}</small>")
    return f"<figure>{''.join(parts)}</figure>"


def _cut(text: str) -> str:
    return escape(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
