"""Histograms as inline SVG, and bars of a table's rows."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from data_prep.stats.funnel import share

_WIDTH, _HEIGHT = 360, 168
_SIDE, _TOP, _BOTTOM = 14, 22, 24
"""Margins: above, the highest share is written, below, where buckets begin."""
_LABELS = 9


def histogram_svg(found: Mapping[str, Any], unit: str) -> str:
    """A column for each bucket from the first to the last that is not empty."""
    shown = _filled(found["buckets"])
    heights = [bucket["samples"] for bucket in shown]
    step, base = (_WIDTH - 2 * _SIDE) / len(shown), _HEIGHT - _BOTTOM
    most, every = max(heights), 1 + (len(shown) - 1) // _LABELS
    parts = [f'<line x1="{_SIDE}" x2="{_WIDTH - _SIDE}" y1="{base}" y2="{base}"/>']
    for n, bucket in enumerate(shown):
        x, height = _SIDE + n * step, (base - _TOP) * heights[n] / most
        title = f"{_range(bucket)} {unit}: {heights[n]:,} samples"
        parts.append(
            f'<rect x="{x + 0.5:.1f}" y="{base - height:.1f}" width="{step - 1:.1f}" '
            f'height="{height:.1f}"><title>{escape(title)}</title></rect>'
        )
    peak = _SIDE + (heights.index(most) + 0.5) * step
    parts.append(_text(min(max(peak, 24), _WIDTH - 24), _TOP - 7, share(most, found["samples"])))
    edges = [bucket["from"] for bucket in shown] + [shown[-1]["below"]]
    parts += [
        _text(_SIDE + n * step, _HEIGHT - 8, _short(edge))
        for n, edge in enumerate(edges)
        if n % every == 0 and edge is not None
    ]
    label = f"{found['samples']:,} samples by {unit}, median {_short(found['median'])}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def bar(count: float, whole: float, *, start: float = 0, kind: str = "left") -> str:
    """A table cell with a bar of `count` of `whole`, begun at `start`; its colour is by `kind`."""
    left, width = (100 * part / whole if whole else 0 for part in (start, count))
    style = f"margin-left:{left:.2f}%;width:{width:.2f}%"
    return f'<td class="bar"><i class="{kind}" style="{style}"></i></td>'


def _filled(buckets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    full = [n for n, bucket in enumerate(buckets) if bucket["samples"]]
    return buckets[full[0] : full[-1] + 1]


def _range(bucket: Mapping[str, Any]) -> str:
    if bucket["below"] is None:
        return f"{_short(bucket['from'])} or more"
    return f"{_short(bucket['from'])} to below {_short(bucket['below'])}"


def _short(number: float) -> str:
    """Pixels and words are whole, ratios have two digits."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(text)}</text>'
