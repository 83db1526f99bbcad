"""The headline figures of evaluation.json: models beside each other."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from stack.report.sections import columns_html, wide


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Args:
        key: in evaluation.json, under a model's name such as "teacher" or "student".
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


def models_of(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The models of an evaluation.json by name, such as "teacher", "teacher_sde" and "student", the
    student last: its parts that hold any of METRICS."""
    keys = [metric.key for metric in METRICS]
    found = {
        name: part
        for name, part in evaluation.items()
        if isinstance(part, Mapping) and any(key in part for key in keys)
    }
    return {name: found[name] for name in sorted(found, key="student".__eq__)}


def head_html(title: str, figures: Mapping[str, Any], *more: str) -> str:
    """What stands above a model's column: ``title`` (HTML), its sampler, and ``more`` (text)."""
    told = ", ".join(filter(None, [figures.get("sampler", ""), *more]))
    return f"{title}<br>{escape(told)}" if told else title


def table_html(columns: Mapping[str, Mapping[str, Any]], marked: Container[str]) -> str:
    """A column per model, the best figure of the marked columns bold; rows that none of those has
    are left out.

    Args:
        columns: HTML above it -> the model's part of evaluation.json. marked: some of the keys.
    """
    kept = {head: figures for head, figures in columns.items() if head in marked}
    rows = [
        _row(metric, columns, [f[metric.key] for f in kept.values() if metric.key in f], marked)
        for metric in METRICS
        if any(metric.key in figures for figures in kept.values())
    ]
    heads = "".join(f"<th>{head}</th>" for head in columns)
    return wide(
        f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _row(
    metric: Metric,
    columns: Mapping[str, Mapping[str, Any]],
    values: Sequence[float],
    marked: Container[str],
) -> str:
    best = max(values, key=lambda value: metric.better * value)
    told = metric.better and len(set(values)) > 1
    cells = []
    for head, figures in columns.items():
        value = figures.get(metric.key)
        text = "–" if value is None else number(value, metric.digits)
        bold = ' class="best"' if told and head in marked and value == best else ""
        cells.append(f"<td{bold}>{text}{interval_html(figures, metric)}</td>")
    title = f"{escape(metric.title)}{metric.arrow} <small>{escape(metric.hint)}</small>"
    return f"<tr><th>{title}</th>{''.join(cells)}</tr>"


def real_html(evaluation: Mapping[str, Any]) -> str:
    """What the same measures say of the real data; empty where that was not asked."""
    rows = {escape(t): [number(v, digits)] for t, v, digits in _of_real_data(evaluation)}
    return columns_html(["real data, for scale"], rows) if rows else ""


def _of_real_data(evaluation: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Title, value and decimals of what was measured without either model."""
    rows = []
    if (halves := evaluation.get("real_halves_frechet_distance")) is not None:
        rows.append(("Fréchet distance between two halves", halves, 3))
    for attribute, share in evaluation.get("judge", {}).get("accuracy", {}).items():
        rows.append((f"Judge right about the {attribute}, held-out pictures", share, 4))
    return rows


def tiles_html(evaluation: Mapping[str, Any], suite: str = "") -> str:
    """The three figures to see first, those that apply; of which suite, where that is given."""
    teacher, student = evaluation.get("teacher", {}), evaluation.get("student", {})
    tiles = []
    distances = [model.get("frechet_distance") for model in (student, teacher)]
    if distances[0] is not None and distances[1]:
        tiles.append((f"{distances[0] / distances[1]:.2f}×", "the teacher’s Fréchet distance"))
    if (speedup := evaluation.get("speedup")) is not None:
        tiles.append((f"{speedup:.0f}×", "the teacher’s images per second"))
    if (accuracy := student.get("caption_accuracy")) is not None:
        tiles.append((f"{100 * accuracy:.1f}%", "of captions drawn right"))
    of = f", {suite}" if suite else ""
    inside = "".join(
        f'<div class="tile"><b>{figure}</b><span>{words}{escape(of)}</span></div>'
        for figure, words in tiles
    )
    return f'<div class="tiles">{inside}</div>' if tiles else ""


def provenance_html(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """How the figures of runs were taken, in a sentence or two. Args: evaluations: by run."""
    parts = {name: " ".join(_provenance(found)) for name, found in evaluations.items() if found}
    alike = len(set(parts.values())) == 1
    said = list(parts.values())[:1] if alike else [f"{name}: {t}" for name, t in parts.items() if t]
    models = [model for found in evaluations.values() for model in models_of(found).values()]
    if any("intervals" in model for model in models):
        said.append(
            "Brackets: 95% intervals over samples, not over training runs; dotted: fewer than "
            "10,000 of them."
        )
    text = escape(" ".join(said).strip())
    return f'<p class="note">{text}</p>' if text else ""


def _provenance(evaluation: Mapping[str, Any]) -> Iterator[str]:
    if "samples" in evaluation:
        seed = f", seed {evaluation['seed']}" if "seed" in evaluation else ""
        yield f"{evaluation['samples']:,} pictures by each model{seed}."
    if "judge" in evaluation:
        yield "Features and answers are those of a classifier trained on the real data."
    if "device" in evaluation:
        yield f"Speed on {evaluation['device']}."


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
