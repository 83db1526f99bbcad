"""The report's newer parts: intervals, published figures, alerts, tables per noise level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stack.report.report import write_report
from tests.report.test_report import EVALUATION, RECIPE, metrics, page, write_log


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_log(tmp_path / "metrics.jsonl", metrics())
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    return tmp_path


def test_intervals_stand_below_their_figures(run: Path) -> None:
    interval = {"frechet_distance": {"low": 2.25, "high": 2.75, "few_samples": True}}
    student = EVALUATION["student"] | {"intervals": interval}
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"student": student}))
    text = " ".join(page(run).text)
    assert "[2.250, 2.750]" in text
    assert "fewer than 10,000" in text


SDE = {"nfe": 40, "recall": 0.625, "sampler": "stochastic Heun, 40 steps, S_churn 30"}


def evaluated(**more: Any) -> dict[str, Any]:
    """Models as stack evaluate --teacher ode sde writes them, each with its sampler."""
    teacher = EVALUATION["teacher"] | {"sampler": "Heun, <50> steps"}
    student = EVALUATION["student"] | {"sampler": "DDIM, 1 steps, guidance 1"}
    return EVALUATION | {"teacher": teacher, "teacher_sde": SDE, "student": student} | more


def test_every_model_has_a_column_that_tells_its_sampler(run: Path) -> None:
    (run / "evaluation.json").write_text(json.dumps(evaluated()))
    found = page(run)
    assert found.cells[:3] == [("50", False), ("40", False), ("1", False)]
    assert ("0.625", False) in found.cells
    text = found.text
    for name, sampler in (
        ("teacher", "Heun, <50> steps"),
        ("teacher_sde", SDE["sampler"]),
        ("student", "DDIM, 1 steps, guidance 1"),
    ):
        assert text[text.index(name) + 1] == sampler


def test_every_suite_has_its_table(run: Path) -> None:
    (run / "evaluations").mkdir()
    other = {"suite": "hpsv2", "student": {"nfe": 1, "hps_anime": 26.25}, "samples": 3200}
    (run / "evaluations" / "hpsv2.json").write_text(json.dumps(other))
    found = page(run)
    text = " ".join(found.text)
    assert found.titles[:2] == ["hpsv2", "digits"]
    for part in ("26.25", "3,200 pictures", "2.500", "5,000 pictures", "Fréchet distance, digits"):
        assert part in text, part


def test_one_suite_is_not_named(run: Path) -> None:
    assert "digits" not in page(run).titles


def test_of_older_evaluations_alone_the_tables_are_shown(run: Path) -> None:
    (run / "evaluations").mkdir()
    (run / "evaluation.json").rename(run / "evaluations" / "digits.json")
    text = " ".join(page(run).text)
    assert "2.500" in text
    assert "Not evaluated yet" not in text


def zero(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"h/variance": 0.0} if "h/variance" in row else row for row in rows]


def test_a_variance_that_is_zero_all_along_is_said(run: Path) -> None:
    """Reverse KL's h is 1 everywhere; a log scale has no place for zero."""

    def chart(html: str) -> str:
        html = html[html.index("<h3>Variance of h</h3>") :]
        return html[: html.index("</figure>")]

    assert "<svg" in chart(write_report(run).read_text())
    write_log(run / "metrics.jsonl", zero(metrics()))
    found = chart(write_report(run).read_text())
    assert "Zero: h is constant." in found
    assert "<svg" not in found


def test_published_figures_stand_below_ours(run: Path) -> None:
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"suite": "cifar10"}))
    text = " ".join(page(run).text)
    for part in ("Published, cifar10", "forward-KL", "1.92", "35 NFE", "StyleSAN-XL", "2.500"):
        assert part in text, part
    part = {"suite": "cifar10-seed1", "suite_of": "cifar10"}
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | part))
    assert "Published, cifar10" in " ".join(page(run).text)
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    assert "Published" not in " ".join(page(run).text)


def test_alerts_come_first(run: Path) -> None:
    assert "Look at this" not in " ".join(page(run).text)
    rows = [row | {"discriminator/accuracy": 0.999} for row in metrics()]
    write_log(run / "metrics.jsonl", rows)
    text = " ".join(page(run).text)
    assert "discriminator saturated" in text
    assert text.index("discriminator saturated") < text.index("Training")


def test_tables_per_noise_level_are_drawn(run: Path) -> None:
    tables = {
        "levels/log_snr": [0],
        "levels/r_bounds": [-2.3, 3.0],
        "levels/calibration": [[[5, 5, 5.0]] * 10] * 2,
        "levels/h": [[10, 10, 12]] * 2,
        "levels/r_counts": [[1] * 12] * 2,
        "levels/h_counts": [[1] * 12] * 2,
    }
    write_log(run / "metrics.jsonl", [row | tables for row in metrics()])
    titles = page(run).titles
    for title in ("Calibration error of r", "r by noise level", "h by noise level"):
        assert title in titles
