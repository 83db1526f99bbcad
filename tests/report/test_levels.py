"""Tables per noise level: added up over the end of a log as one batch would be."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from stack.fdistill.calibration import NoiseLevels, Reliability
from stack.report.history import History
from stack.report.level_charts import level_figures
from stack.report.levels import Levels, read_levels
from stack.train.metrics import H_EDGES, R_CLASSES, MetricsLog, drift, summarize

BOUNDS = (log(0.1), log(20.0))
LEVELS = NoiseLevels(torch.tensor([-1.0, 1.0]), lambda t: -t.float())


def figures(n: int, seed: int) -> dict[str, torch.Tensor]:
    """What an iteration of both steps tells: three levels, t in -3..3."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(4, n, generator=generator)
    return {
        "log_r": normal[0].clamp(*BOUNDS),
        "h": normal[1].exp(),
        "gap": normal[2].abs(),
        "t": torch.randint(-3, 4, (n,), generator=generator),
        "logit/real": normal[3] + 1,
        "logit/fake": normal[3] - 1,
        "t/gan": torch.randint(-3, 4, (n,), generator=generator),
        "latent/real": torch.randn(n, 4, generator=generator),
        "latent/fake": torch.randn(n, 4, generator=generator) + 2,
        "thumbnail/real": torch.randn(n, 9, generator=generator),
        "thumbnail/fake": torch.ones(n, 9),
    }


def logged(folder: Path, parts: list[dict[str, torch.Tensor]]) -> History:
    """Through the log's own file and back."""
    metrics = MetricsLog(folder)
    for step, part in enumerate(parts, 1):
        metrics.row(step, summarize(part, log_r_bounds=BOUNDS, levels=LEVELS))
    metrics.close()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return History([row for row in rows if "event" not in row])


@pytest.fixture
def parts() -> list[dict[str, torch.Tensor]]:
    return [figures(200, seed) for seed in range(8)]


@pytest.fixture
def found(tmp_path: Path, parts: list[dict[str, torch.Tensor]]) -> Levels:
    levels = read_levels(logged(tmp_path, parts))
    assert levels
    return levels


def joined(parts: list[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    """Of the last quarter of the log."""
    return torch.cat([part[name] for part in parts[-2:]])


def test_calibration_is_that_of_all_samples_together(
    found: Levels, parts: list[dict[str, torch.Tensor]]
) -> None:
    logits = joined(parts, "logit/real"), joined(parts, "logit/fake")
    whole = Reliability(3).update(*logits, LEVELS.of(joined(parts, "t/gan")))
    np.testing.assert_allclose(found.errors, whole.errors().numpy(), atol=1e-4)
    assert found.since == 7
    predicted, share, counts = found.reliability(slice(0, 3))
    assert counts.sum() == 800
    assert ((predicted >= 0) & (predicted <= 1) & (share >= 0) & (share <= 1)).all()
    assert share @ counts == pytest.approx(400)


def test_variance_of_h_is_that_of_all_samples_together(
    found: Levels, parts: list[dict[str, torch.Tensor]]
) -> None:
    level, h = LEVELS.of(joined(parts, "t")), joined(parts, "h").double()
    expected = [
        float(h[level == i].var(correction=0) / h[level == i].mean() ** 2) for i in range(3)
    ]
    np.testing.assert_allclose(found.variances, expected, rtol=1e-3)


def test_histograms_count_every_sample_in_its_class(
    found: Levels, parts: list[dict[str, torch.Tensor]]
) -> None:
    level, r, h = (joined(parts, name).numpy() for name in ("t", "log_r", "h"))
    level = LEVELS.of(torch.tensor(level)).numpy()
    edges = np.linspace(*BOUNDS, R_CLASSES + 1)
    for i in range(3):
        expected = np.histogram(r[level == i].clip(edges[0], edges[-1] - 1e-6), edges)[0]
        assert np.abs(found.r_counts[i] - expected).sum() <= 4  # On an edge, either side will do.
        assert found.h_counts[i].sum() == (level == i).sum()
        assert found.h_counts[i][0] == (h[level == i] < H_EDGES[0]).sum()
        assert found.h_counts[i][-1] == (h[level == i] >= H_EDGES[-1]).sum()


def test_the_variance_of_every_level_is_a_number_of_the_log(tmp_path: Path) -> None:
    [row] = logged(tmp_path, [figures(200, 0)]).rows
    assert [key for key in row if key.startswith("h/variance/")] == [
        f"h/variance/{level}" for level in range(3)
    ]


def test_nothing_of_it_is_logged_where_nothing_of_it_is_told() -> None:
    part = figures(10, 0)
    student = {key: part[key] for key in ("log_r", "h", "gap", "t")}
    row = summarize(student, log_r_bounds=BOUNDS, levels=LEVELS)
    assert "levels/calibration" not in row
    assert "latent/drift" not in row
    critic = {key: value for key, value in part.items() if "/" in key}
    row = summarize(critic, log_r_bounds=BOUNDS, levels=LEVELS)
    similarities = {"similarity/fake", "similarity/real"}
    assert set(row) == {"levels/calibration", "latent/drift"} | similarities
    assert row["similarity/fake"] == pytest.approx(1)
    assert read_levels(History([{"step": 1, "loss/fake": 1.0}])) is None


def test_what_is_not_finite_is_logged_as_nothing(tmp_path: Path) -> None:
    part = figures(10, 0)
    part["h"] = torch.full((10,), float("nan"))
    history = logged(tmp_path, [part])
    assert read_levels(history) is not None


def test_drift_is_in_the_datas_deviations() -> None:
    real = torch.tensor([[-1.0, -10.0], [1.0, 10.0]])
    assert drift(real + torch.tensor([2.0, 20.0]), real) == pytest.approx(2)
    assert drift(real, real) == 0


def test_charts_are_bare_svg_and_name_their_runs(found: Levels) -> None:
    html = level_figures({"first": found, "second": found})
    for words in ("Reliability of r, first", "h by noise level, second", "Calibration error of r"):
        assert words in html
    assert html.count("<svg") == 2 + 2 + 4
    assert not re.search(r"#[0-9a-fA-F]{6}", html)
    assert level_figures({}) == ""


def test_a_variance_of_zero_is_said(found: Levels) -> None:
    """Reverse KL's h is 1 everywhere."""
    ones = replace(found, h=np.array([[6.0, 6.0, 6.0], [13.0, 13.0, 13.0], [0.0, 0.0, 0.0]]))

    def chart(runs: dict[str, Levels | None]) -> str:
        html = level_figures(runs)
        html = html[html.index("<h3>Variance of h by noise level</h3>") :]
        return html[: html.index("</figure>")]

    assert "Zero: h is constant." in chart({"rkl": ones})
    assert "<svg" not in chart({"rkl": ones})
    both = chart({"rkl": ones, "fkl": found})
    assert "Zero, h is constant: rkl." in both
    assert "--series-2" in both
    assert "--series-1" not in both
    assert "Zero" not in chart({"fkl": found})


def test_a_run_without_tables_keeps_its_colour(found: Levels) -> None:
    html = level_figures({"first": None, "second": found})
    chart = html[html.index("Calibration error of r") :]
    chart = chart[: chart.index("</figure>")]
    assert "second" in chart
    assert "first" not in chart
    assert "--series-2" in chart
    assert "--series-1" not in chart
