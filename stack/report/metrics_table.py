"""The headline figures of evaluation.json: teacher beside student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Args:
        key: in evaluation.json, under "teacher" and "student".
        title: what the row is called. hint: what it means, in a few words.
        digits: after the decimal point.
        better: 1 if higher is better, -1 if lower is, 0 if neither.
    """

    key: str
    title: str
    hint: str
    digits: int
    better: int

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {-1: " ↓", 0: "", 1: " ↑"}[self.better]


METRICS = (
    Metric("nfe", "Network evaluations", "per picture", 0, 0),
    Metric("frechet_distance", "Fréchet distance", "to the real data", 3, -1),
    Metric("recall", "Recall", "real pictures covered", 3, 1),
    Metric("precision", "Precision", "pictures like real ones", 3, 1),
    Metric("clip_score", "CLIP score", "picture and prompt", 3, 1),
    Metric("in_batch_similarity", "In-batch similarity", "of one prompt’s pictures", 3, -1),
    Metric("hps_score", "HPSv2", "all styles", 2, 1),
    Metric("hps_anime", "HPSv2, anime", "", 2, 1),
    Metric("hps_photo", "HPSv2, photo", "", 2, 1),
    Metric("hps_concept-art", "HPSv2, concept art", "", 2, 1),
    Metric("hps_paintings", "HPSv2, paintings", "", 2, 1),
    Metric("class_accuracy", "Class accuracy", "by a classifier", 4, 1),
    Metric("caption_accuracy", "Caption accuracy", "every stated attribute right", 4, 1),
    Metric("mode_tv", "Mode imbalance", "total variation, open captions", 4, -1),
    Metric("latency_seconds", "Latency", "seconds, one picture", 3, -1),
    Metric("images_per_second", "Images per second", "text to pixels", 1, 1),
)


def table_html(evaluation: Mapping[str, Any]) -> str:
    """Teacher and student side by side, the better figure bold; rows that neither has are left
    out. Below them, what the same measures say of the real data."""
    teacher, student = evaluation.get("teacher", {}), evaluation.get("student", {})
    rows = [
        _row(metric, teacher, student)
        for metric in METRICS
        if metric.key in teacher or metric.key in student
    ]
    real = [
        f'<tr><th colspan="2">{escape(title)}</th><td>{number(value, digits)}</td></tr>'
        for title, value, digits in _of_real_data(evaluation)
    ]
    heading = '<tr><th colspan="3">Real data, for scale</th></tr>' if real else ""
    return (
        '<div class="wide"><table><thead><tr><th></th><th>teacher</th><th>student</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody><tbody>{heading}{''.join(real)}</tbody></table></div>"
    )


def _of_real_data(evaluation: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Title, value and decimals of what was measured without either model."""
    rows = []
    if (halves := evaluation.get("real_halves_frechet_distance")) is not None:
        rows.append(("Fréchet distance between two halves", halves, 3))
    for attribute, share in evaluation.get("judge", {}).get("accuracy", {}).items():
        rows.append((f"Judge right about the {attribute}, held-out pictures", share, 4))
    return rows


def tiles_html(evaluation: Mapping[str, Any]) -> str:
    """The three figures to see first, those that apply."""
    teacher, student = evaluation.get("teacher", {}), evaluation.get("student", {})
    tiles = []
    distances = [model.get("frechet_distance") for model in (student, teacher)]
    if distances[0] is not None and distances[1]:
        tiles.append((f"{distances[0] / distances[1]:.2f}×", "the teacher’s Fréchet distance"))
    if (speedup := evaluation.get("speedup")) is not None:
        tiles.append((f"{speedup:.0f}×", "the teacher’s images per second"))
    if (accuracy := student.get("caption_accuracy")) is not None:
        tiles.append((f"{100 * accuracy:.1f}%", "of captions drawn right"))
    inside = "".join(
        f'<div class="tile"><b>{figure}</b><span>{words}</span></div>' for figure, words in tiles
    )
    return f'<div class="tiles">{inside}</div>' if tiles else ""


def provenance_html(evaluation: Mapping[str, Any]) -> str:
    """How the figures were taken, in a sentence or two."""
    said = []
    if "samples" in evaluation:
        seed = f", seed {evaluation['seed']}" if "seed" in evaluation else ""
        said.append(f"{evaluation['samples']:,} pictures by each model{seed}.")
    if "teacher_sampler" in evaluation:
        said.append(f"Teacher: {evaluation['teacher_sampler']}.")
    if "judge" in evaluation:
        said.append("Features and answers are those of a classifier trained on the real data.")
    if "device" in evaluation:
        said.append(f"Speed on {evaluation['device']}.")
    models = [value for value in evaluation.values() if isinstance(value, dict)]
    if any("intervals" in model for model in models):
        said.append("Brackets: 95% intervals over samples; dotted: fewer than 10,000 of them.")
    return f'<p class="note">{escape(" ".join(said))}</p>' if said else ""


def number(value: float, digits: int) -> str:
    """Fixed decimals, thousands apart."""
    return f"{value:,.{digits}f}"


def interval_html(row: Mapping[str, Any], metric: Metric) -> str:
    """The 95% interval of a model's figure, where it was measured with one."""
    found = row.get("intervals", {}).get(metric.key)
    if not found:
        return ""
    ends = (number(found[end], metric.digits) for end in ("low", "high"))
    few = " few" if found.get("few_samples") else ""
    return f'<small class="interval{few}">[{", ".join(ends)}]</small>'


def _row(metric: Metric, teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    values = [row.get(metric.key) for row in (teacher, student)]
    both = None not in values
    lead = metric.better * (student[metric.key] - teacher[metric.key]) if both else 0
    cells = []
    for row, value, ahead in zip((teacher, student), values, (-lead, lead), strict=True):
        text = "–" if value is None else number(value, metric.digits)
        text += interval_html(row, metric)
        cells.append(f'<td class="best">{text}</td>' if ahead > 0 else f"<td>{text}</td>")
    title = f"{escape(metric.title)}{metric.arrow}"
    return f"<tr><th>{title} <small>{escape(metric.hint)}</small></th>{''.join(cells)}</tr>"
