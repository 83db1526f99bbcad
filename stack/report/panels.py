"""Which curves a page shows, and how to read them: one table row per chart of a run. Of several
runs, each line of it is a chart of its own, with a curve of every run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import log

import numpy as np

from stack.report.curves import Chart, chart_svg, is_zero
from stack.report.history import Curve, History
from stack.report.sections import keys, said_html

_QUANTILES = ("p10", "p50", "p90")


@dataclass(frozen=True)
class Line:
    """A logged figure in a chart.

    Args:
        name: beside its colour. note: what to look for. reference: a value to compare it with.
    """

    name: str
    note: str = ""
    reference: float | None = None


@dataclass(frozen=True)
class Panel:
    """One chart of a run.

    Args:
        title: above the chart.
        y_label: what the numbers are, with their unit.
        curves: by logged figure.
        prefix: draw every figure under this prefix that no other panel names.
        band: draw this figure's p10, p50 and p90; of several runs p50, as `middle`.
        zero: why a figure may be zero all along, which is said instead of drawn.
        exact, log, limits: as in `Chart`.
    """

    title: str
    y_label: str
    curves: Mapping[str, Line] = field(default_factory=dict)
    prefix: str = ""
    band: str = ""
    middle: Line = Line("median")
    zero: str = ""
    exact: bool = False
    log: bool = False
    limits: tuple[float | None, float | None] = (None, None)


PANELS = (
    Panel(
        "Losses of the student",
        "loss",
        {"loss/gap": Line("score gap"), "loss/gan": Line("GAN")},
        log=True,
    ),
    Panel(
        "Losses of the critics",
        "loss",
        {
            "loss/fake": Line("fake score"),
            "loss/discriminator": Line(
                "discriminator",
                "A discriminator that tells nothing apart is at 2 ln 2 = 1.39 (dashed).",
                2 * log(2),
            ),
            "loss/r1": Line("R1 penalty"),
        },
        log=True,
    ),
    Panel("Losses", "loss", prefix="loss/", log=True),
    Panel(
        "Density ratio r",
        "r = p teacher / q student",
        band="r",
        middle=Line("median", "At 1 (dashed), data and samples look alike.", 1),
        log=True,
    ),
    Panel(
        "Weight h of the score gap",
        "h, normalised",
        band="h",
        middle=Line("median", "Far below 1 (dashed): few samples steer.", 1),
        log=True,
    ),
    Panel(
        "Variance of h",
        "Var h / (E h)²",
        {"h/variance": Line("", "Noise that the weighting adds to the student's gradient.")},
        zero="h is constant",
        log=True,
        limits=(0, None),
    ),
    Panel(
        "Gap to the teacher",
        "mean |x0 fake − x0 teacher|",
        {"gap/mean": Line("", "Falls as the student's distribution nears the teacher's.")},
    ),
    Panel(
        "Discriminator",
        "share",
        {
            "discriminator/accuracy": Line(
                "right answers",
                "Near 0.5 (dashed) it cannot tell; near 1 the ratio saturates.",
                0.5,
            ),
            "r/clipped": Line("ratios at a clip", "Ratios at a clip tell nothing more apart."),
        },
        limits=(0, 1.02),
    ),
    Panel(
        "Likeness within a batch",
        "mean cosine of thumbnails",
        {
            "similarity/fake": Line("student", "Rising: samples grow alike, modes get lost."),
            "similarity/real": Line("data"),
        },
    ),
    Panel(
        "Drift of the mean latent",
        "standard deviations of the data",
        {"latent/drift": Line("", "Colour and brightness of the average sample.")},
        limits=(0, None),
    ),
    Panel(
        "Quick evaluations",
        "Fréchet distance",
        {"quick/frechet_distance": Line("")},
        exact=True,
        log=True,
    ),
    Panel(
        "Quick evaluations: likeness",
        "mean cosine, pictures of one prompt",
        {"quick/in_batch_similarity": Line("", "Rising: a prompt's pictures grow alike.")},
        exact=True,
    ),
    Panel(
        "Quick evaluations: modes",
        "entropy in nats",
        {"quick/mode_entropy": Line("", "Falling: some modes are drawn less and less.")},
        exact=True,
    ),
    Panel("Gradient norms", "L2 norm before clipping", prefix="grad/", log=True),
    Panel("Learning rates", "learning rate", prefix="lr/", exact=True, log=True),
    Panel(
        "Speed of training", "images per second", {"images_per_second": Line("")}, limits=(0, None)
    ),
)
_NAMED = frozenset(figure for panel in PANELS for figure in panel.curves)


def charts_html(runs: Mapping[str, History]) -> str:
    """Every panel for which something was logged, as figures with inline SVG."""
    histories = list(runs.values())
    figures = [
        figure
        for panel in PANELS
        if (lines := _lines(panel, histories))
        for figure in (
            _one(panel, lines, *histories) if len(runs) == 1 else _each(panel, lines, runs)
        )
    ]
    return f'<div class="charts">{"".join(figures)}</div>'


def _lines(panel: Panel, runs: Sequence[History]) -> dict[str, Line]:
    """The panel's lines that any run has logged, by figure."""
    lines = dict(panel.curves)
    if panel.band:
        lines = {f"{panel.band}/p50": panel.middle}
    elif panel.prefix:
        found = dict.fromkeys(figure for run in runs for figure in run.keys(panel.prefix))
        lines = {f: Line(f.removeprefix(panel.prefix)) for f in found if f not in _NAMED}
    return {f: line for f, line in lines.items() if any(run.curve(f) for run in runs)}


def _one(panel: Panel, lines: Mapping[str, Line], run: History) -> Iterator[str]:
    """One chart of a run's lines."""
    if panel.zero and all(is_zero(run.curve(figure).values) for figure in lines):
        yield said_html(panel.title, f"Zero: {panel.zero}.")
        return
    notes = [line.note for line in lines.values() if line.note]
    chart = Chart(
        panel.y_label,
        lines=() if panel.band else [run.curve(figure) for figure in lines],
        band=run.curves(*(f"{panel.band}/{q}" for q in _QUANTILES)) if panel.band else (),
        exact=panel.exact,
        log=panel.log,
        references=_references(lines.values()),
        limits=panel.limits,
        marks=run.restarts,
    )
    if panel.band:
        notes = ["Median, and 10th to 90th percentile of a batch.", *notes]
    legend = keys([line.name for line in lines.values()]) if len(lines) > 1 else ""
    yield _figure(panel.title, legend, chart, " ".join(notes))


def _each(panel: Panel, lines: Mapping[str, Line], runs: Mapping[str, History]) -> Iterator[str]:
    """A chart per line, with a curve of every run in the run's colour."""
    alone = len(panel.curves) == 1
    for figure, line in lines.items():
        title = panel.title if alone else f"{panel.title}: {line.name}"
        curves = {name: run.curve(figure) for name, run in runs.items()}
        zero = [n for n, curve in curves.items() if panel.zero and is_zero(curve.values)]
        told = f"Zero, {panel.zero}: {', '.join(zero)}." if zero else ""
        curves |= dict.fromkeys(zero, Curve(np.empty(0), np.empty(0)))
        if not any(curves.values()):
            yield said_html(title, told)
            continue
        chart = Chart(
            panel.y_label,
            lines=list(curves.values()),
            exact=panel.exact,
            log=panel.log,
            references=_references([line]),
            limits=panel.limits,
        )
        yield _figure(title, "", chart, f"{line.note} {told}".strip())


def _references(lines: Iterable[Line]) -> list[float]:
    return [line.reference for line in lines if line.reference is not None]


def _figure(title: str, legend: str, chart: Chart, note: str) -> str:
    told = f"<p>{escape(note)}</p>" if note else ""
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3>{legend}</figcaption>"
        f"{chart_svg(chart, salt=title)}{told}</figure>"
    )
