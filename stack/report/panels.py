"""Which curves a report shows, and how to read them: one table row per chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from stack.report.curves import Chart, chart_svg
from stack.report.history import History


@dataclass(frozen=True)
class Panel:
    """One chart of the report.

    Args:
        title: above the chart.
        y_label: what the numbers are, with their unit.
        curves: logged figure -> name beside its colour.
        prefix: draw every figure under this prefix that no other panel names.
        band: draw this figure's p10, p50 and p90.
        note: what to look for.
        exact, log, reference, limits: as in `Chart`.
    """

    title: str
    y_label: str
    curves: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    band: str = ""
    note: str = ""
    exact: bool = False
    log: bool = False
    reference: float | None = None
    limits: tuple[float | None, float | None] = (None, None)


PANELS = (
    Panel(
        "Losses of the student",
        "loss",
        {"loss/gap": "score gap", "loss/gan": "GAN"},
        log=True,
    ),
    Panel(
        "Losses of the critics",
        "loss",
        {
            "loss/fake": "fake score",
            "loss/discriminator": "discriminator",
            "loss/r1": "R1 penalty",
        },
        note="A discriminator that tells nothing apart is at 2 ln 2 = 1.39.",
        log=True,
    ),
    Panel("Losses", "loss", prefix="loss/", log=True),
    Panel(
        "Density ratio r",
        "r = p teacher / q student",
        band="r",
        note="Median, and 10th to 90th percentile of a batch. At 1, data and samples look alike.",
        log=True,
        reference=1,
    ),
    Panel(
        "Weight h of the score gap",
        "h, normalised",
        band="h",
        note="Median, and 10th to 90th percentile of a batch. A wide band: few samples steer.",
        log=True,
        reference=1,
    ),
    Panel(
        "Variance of h",
        "Var h / (E h)²",
        {"h/variance": "normalised variance"},
        note="Noise that the weighting adds to the student's gradient.",
        log=True,
        limits=(0, None),
    ),
    Panel(
        "Gap to the teacher",
        "mean |x0 fake − x0 teacher|",
        {"gap/mean": "gap"},
        note="Falls as the student's distribution nears the teacher's.",
    ),
    Panel(
        "Discriminator",
        "share",
        {"discriminator/accuracy": "right answers", "r/clipped": "ratios at a clip"},
        note="Near 0.5 it cannot tell; near 1 the ratio saturates.",
        reference=0.5,
        limits=(0, 1.02),
    ),
    Panel(
        "Likeness within a batch",
        "mean cosine of thumbnails",
        {"similarity/fake": "student", "similarity/real": "data"},
        note="Rising: samples grow alike, modes get lost.",
    ),
    Panel(
        "Drift of the mean latent",
        "standard deviations of the data",
        {"latent/drift": "distance to the data’s mean"},
        note="Colour and brightness of the average sample.",
        limits=(0, None),
    ),
    Panel(
        "Quick evaluations",
        "Fréchet distance",
        {"quick/frechet_distance": "Fréchet distance"},
        exact=True,
        log=True,
    ),
    Panel("Gradient norms", "L2 norm before clipping", prefix="grad/", log=True),
    Panel("Learning rates", "learning rate", prefix="lr/", exact=True, log=True),
    Panel(
        "Speed of training",
        "images per second",
        {"images_per_second": "images per second"},
        limits=(0, None),
    ),
)


_QUANTILES = ("p10", "p50", "p90")


def charts_html(history: History) -> str:
    """Every panel for which something was logged, as figures with inline SVG."""
    named = {key for panel in PANELS for key in panel.curves}
    figures = [
        _figure(panel, chosen, history)
        for panel in PANELS
        if (chosen := _chosen(panel, history, named)) or history.curve(f"{panel.band}/p50")
    ]
    return f'<div class="charts">{"".join(figures)}</div>'


def _chosen(panel: Panel, history: History, named: set[str]) -> dict[str, str]:
    """Figure -> name of the panel's curves that were logged."""
    if panel.prefix:
        found = [key for key in history.keys(panel.prefix) if key not in named]
        return {key: key.removeprefix(panel.prefix) for key in found if history.curve(key)}
    return {key: name for key, name in panel.curves.items() if history.curve(key)}


def _figure(panel: Panel, chosen: Mapping[str, str], history: History) -> str:
    chart = Chart(
        panel.y_label,
        lines=[history.curve(key) for key in chosen],
        band=history.curves(*(f"{panel.band}/{q}" for q in _QUANTILES)) if panel.band else (),
        exact=panel.exact,
        log=panel.log,
        reference=panel.reference,
        limits=panel.limits,
        marks=history.restarts,
    )
    keys = "".join(
        f'<span class="key"><i style="background:var(--series-{i})"></i>{escape(name)}</span>'
        for i, name in enumerate(chosen.values(), 1)
    )
    legend = f"<p>{keys}</p>" if len(chosen) > 1 else ""
    note = f"<p>{escape(panel.note)}</p>" if panel.note else ""
    return (
        f"<figure><figcaption><h3>{escape(panel.title)}</h3>{legend}</figcaption>"
        f"{chart_svg(chart, salt=panel.title)}{note}</figure>"
    )
