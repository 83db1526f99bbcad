"""Published figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from stack.report.metrics_table import METRICS, number
from stack.report.published import Row, datasets, rows


def published_html(suite: str, ours: Mapping[str, Mapping[str, Any]]) -> str:
    """The paper's rows for a suite under those of our students, others' folded away; empty where
    nothing is published for it.

    Args:
        suite: the whole one, where ours is a part of it. ours: run -> its student's figures.
    """
    if suite not in datasets():
        return ""
    found = rows(suite)
    metrics: list[str] = list(dict.fromkeys(key for row in found for key in row.metrics))
    titles = {metric.key: metric for metric in METRICS}
    heads = "".join(
        f"<th>{escape(titles[key].title)}{titles[key].arrow}</th>"
        if key in titles
        else f"<th>{escape(key)}</th>"
        for key in metrics
    )
    head = f"<thead><tr><th></th>{heads}</tr></thead>"
    own = "".join(
        f'<tr class="own"><th>{escape(name)}</th>{_cells(figures, metrics)}</tr>'
        for name, figures in ours.items()
        if any(metric in figures for metric in metrics)
    )
    paper = _lines([row for row in found if row.kind != "other"], metrics)
    other = _lines([row for row in found if row.kind == "other"], metrics)
    parts = [
        f'<div class="wide"><table>{head}<tbody>{own}</tbody><tbody>{paper}</tbody></table></div>'
    ]
    if other:
        parts.append(
            f"<details><summary>Other papers, {escape(suite)}</summary>"
            f'<div class="wide"><table>{head}<tbody>{other}</tbody></table></div></details>'
        )
    return f"<h3 class='published'>Published, {escape(suite)}</h3>{''.join(parts)}"


def _lines(found: Sequence[Row], metrics: Sequence[str]) -> str:
    return "".join(
        f"<tr><th>{escape(row.method)} <small>{escape(row.hint)}</small></th>"
        f"{_cells(row.metrics, metrics)}</tr>"
        for row in found
    )


def _cells(figures: Mapping[Any, Any], metrics: Sequence[str]) -> str:
    digits = {metric.key: metric.digits for metric in METRICS}
    return "".join(
        f"<td>{number(figures[key], min(3, digits.get(key, 2)))}</td>"
        if key in figures
        else "<td>–</td>"
        for key in metrics
    )
