"""The report's newer parts: intervals, published figures, alerts, tables per noise level."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


def test_published_figures_stand_below_ours(run: Path) -> None:
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"suite": "cifar10"}))
    text = " ".join(page(run).text)
    for part in ("Published, cifar10", "forward-KL", "1.92", "35 NFE", "StyleSAN-XL", "2.500"):
        assert part in text, part
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
