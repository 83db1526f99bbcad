"""Tables of an ablation: statistics against scipy's, pairs by seed, what is missing left out."""

from __future__ import annotations

from dataclasses import replace
from math import exp, isnan, log

import numpy as np
import pytest
from scipy import stats

from stack.report.ablation import Layout, markdown, paired, result_rows, spread, t_quantile


@pytest.mark.parametrize("p", [0.6, 0.9, 0.975, 0.995])
@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 10, 99])
def test_t_quantile(p: float, degrees: int) -> None:
    assert t_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-9)


def test_spread_is_the_samples() -> None:
    found = spread([1.0, 2.0, 4.0])
    assert (found.mean, found.count) == (pytest.approx(7 / 3), 3)
    assert found.deviation == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert isnan(spread([1.0]).deviation)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_ratios_are_paired_by_seed() -> None:
    base = {0: 1.0, 1: 10.0, 2: 100.0, 7: 5.0}
    ours = {0: 1.1, 1: 11.0, 2: 110.0, 9: 1.0}
    found = paired(ours, base)
    assert found is not None
    assert found.count == 3
    assert (found.value, found.low, found.high) == pytest.approx((1.1, 1.1, 1.1))


def test_interval_is_students() -> None:
    logs = np.array([0.1, -0.2, 0.4])
    found = paired({i: exp(v) for i, v in enumerate(logs)}, dict.fromkeys(range(3), 1.0))
    assert found is not None
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert (found.low, found.high) == pytest.approx((exp(low), exp(high)), rel=1e-9)


def test_differences_and_bootstrap() -> None:
    ours, base = {i: float(i) for i in range(9)}, dict.fromkeys(range(9), 0.0)
    found = paired(ours, base, ratio=False, method="bootstrap")
    assert found is not None
    assert found.value == 4
    assert 2 < found.low < 3.2
    assert 4.8 < found.high < 6


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_what_is_not_above_zero_has_no_ratio(bad: float) -> None:
    assert paired({0: bad, 1: 2.0}, {0: 1.0, 1: 1.0}) is None
    assert paired({0: bad}, {0: 1.0}, ratio=False) is not None


def test_nothing_in_common_is_no_comparison() -> None:
    assert paired({0: 1.0}, {1: 1.0}) is None


LAYOUT = Layout(
    {"divergence": ["rkl", "js"], "GAN": ["with", "without"]},
    {(d, g): [("rkl", g)] for d in ("rkl", "js") for g in ("with", "without")},
    {"distance": "ratio"},
)
SCORES = {
    ("rkl", "with"): {0: {"distance": 2.0}, 1: {"distance": 4.0}},
    ("js", "with"): {0: {"distance": 1.0}, 1: {"distance": 2.0}},
    ("js", "without"): {0: {"distance": 3.0}},
}


def test_rows_compare_with_the_same_column() -> None:
    rows = list(result_rows(LAYOUT, SCORES))
    assert [(row["divergence"], row["GAN"], row["seeds"], row["pairs"]) for row in rows] == [
        ("rkl", "with", 2, 0),
        ("js", "with", 2, 2),
        ("js", "without", 1, 0),
    ]
    assert rows[1]["compared"] == pytest.approx(0.5)
    assert rows[1]["baseline"] == "rkl / with"
    assert rows[2]["deviation"] is None


MIXED = replace(LAYOUT, metrics={"distance": "ratio", "recall": "difference", "share": "ratio"})
COLLAPSED = {
    ("rkl", "with"): {s: {"distance": 2.0, "recall": 0.2, "share": 0.2} for s in (0, 1)},
    ("js", "with"): {s: {"distance": 1.0, "recall": 0.1 * s, "share": 0.1 * s} for s in (0, 1)},
}


def test_a_seed_at_zero_has_a_difference_and_a_word_in_place_of_a_ratio() -> None:
    rows = {row["metric"]: row for row in result_rows(MIXED, COLLAPSED) if row["baseline"]}
    assert [row["comparison"] for row in rows.values()] == [
        "ratio",
        "difference",
        "no ratio: a seed at 0",
    ]
    assert rows["distance"]["compared"] == pytest.approx(0.5)
    assert rows["recall"]["compared"] == pytest.approx(-0.15)
    assert (rows["share"]["compared"], rows["share"]["pairs"]) == (None, 0)
    lines = markdown("plan", MIXED, COLLAPSED).splitlines()
    told = [line for line in lines if line.startswith("| js")]
    assert "<br>×0.500 [0.500, 0.500] |" in told[0]
    assert "<br>-0.15 [" in told[1]
    assert "| 0.05 ± 0.071<br>no ratio: a seed at 0 |" in told[2]
    assert "below it the ratio or difference to a baseline" in "".join(lines)


def test_the_word_names_its_baseline_where_there_are_several() -> None:
    both = replace(BOTH, metrics=MIXED.metrics)
    scores = COLLAPSED | {("js", "without"): {0: {"share": -0.1}}}
    told = markdown("plan", both, scores)
    assert "no ratio: a seed at 0 of rkl<br>no ratio: a seed below 0 of without" in told


def test_markdown_has_the_papers_shape() -> None:
    lines = markdown("plan", LAYOUT, SCORES, notes=["Said so."]).splitlines()
    assert "| divergence | with | without |" in lines
    assert "| rkl | 3 ± 1.4<br>baseline | – |" in lines
    assert "| js | 1.5 ± 0.71<br>×0.500 [0.500, 0.500] | 3 |" in lines
    assert "Said so." in lines
    assert "* with: js < rkl, by mean" in lines
    assert not [line for line in lines if line.startswith("* without")]  # One value has no order.


BOTH = replace(
    LAYOUT,
    bases={(d, g): [("rkl", g), (d, "without")] for d, g in LAYOUT.bases},
)


def test_several_baselines_are_compared_with_one_by_one() -> None:
    scores = SCORES | {("rkl", "without"): {0: {"distance": 4.0}, 1: {"distance": 16.0}}}
    rows = list(result_rows(BOTH, scores))
    assert [(r["divergence"], r["GAN"], r["baseline"], r["pairs"]) for r in rows] == [
        ("rkl", "with", "rkl / without", 2),
        ("rkl", "without", "rkl / without", 0),
        ("js", "with", "rkl / with", 2),
        ("js", "with", "js / without", 1),
        ("js", "without", "rkl / without", 1),
    ]
    assert rows[0]["compared"] == pytest.approx((0.5 * 0.25) ** 0.5)
    assert rows[3]["compared"] == pytest.approx(1 / 3)
    lines = markdown("plan", BOTH, scores).splitlines()
    [row] = [line for line in lines if line.startswith("| js")]
    assert "<br>×0.500 [0.500, 0.500] of rkl<br>×0.333 of without |" in row
    assert row.endswith("| 3<br>baseline<br>×0.750 of rkl |")
    assert "* without: js < rkl, by mean" in lines


def test_pairs_of_several_cells_are_pooled_by_what_differs() -> None:
    scores = SCORES | {("rkl", "without"): {0: {"distance": 4.0}, 1: {"distance": 16.0}}}
    pooled = [line for line in markdown("plan", BOTH, scores).splitlines() if " cells" in line]
    # with / without: 2/4, 4/16 of rkl and 1/3 of js; js / rkl: 1/2, 2/4 with and 3/4 without.
    logs = {"with": [log(1 / 2), log(1 / 4), log(1 / 3)], "js": [log(1 / 2)] * 2 + [log(3 / 4)]}
    for (ours, values), line in zip(logs.items(), pooled, strict=True):
        mean, half = np.mean(values), stats.t.ppf(0.975, 2) * stats.sem(values)
        told = f"×{exp(mean):.3f} [{exp(mean - half):.3f}, {exp(mean + half):.3f}]"
        assert line.endswith(f": {told}, 3 pairs in 2 cells, counted as independent")
        assert line.startswith(f"* {ours} against ")


def test_a_comparison_of_one_cell_is_not_pooled() -> None:
    assert " cells" not in markdown("plan", LAYOUT, SCORES)


def test_values_of_one_name_are_not_pooled_across_axes() -> None:
    cells = [(r, h) for r in ("on", "off") for h in ("on", "off")]
    layout = Layout(
        {"r": ["on", "off"], "h": ["on", "off"]},
        {(r, h): [("on", h), (r, "on")] for r, h in cells},
        {"distance": "ratio"},
    )
    values = dict(zip(cells, (1.0, 3.0, 2.0, 6.0), strict=True))  # Off is 2 times in r, 3 in h.
    scores = {cell: {seed: {"distance": v} for seed in (0, 1)} for cell, v in values.items()}
    lines = markdown("plan", layout, scores).splitlines()
    end = "4 pairs in 2 cells, counted as independent"
    assert f"* r off against r on: ×2.000 [2.000, 2.000], {end}" in lines
    assert f"* h off against h on: ×3.000 [3.000, 3.000], {end}" in lines
    ends = "×2.000 [2.000, 2.000] of r on<br>×3.000 [3.000, 3.000] of h on |"
    assert [line for line in lines if line.startswith("| off ") and line.endswith(ends)]
    scores["on", "on"] = {0: {"distance": 0.0}}
    lines = markdown("plan", layout, scores).splitlines()
    assert "* h off against h on: no ratio: a seed at 0" in lines


def test_without_a_baseline_there_is_no_comparison() -> None:
    alone = replace(LAYOUT, bases={cell: [] for cell in LAYOUT.bases})
    assert {(row["baseline"], row["pairs"]) for row in result_rows(alone, SCORES)} == {("", 0)}
    assert "| js | 1.5 ± 0.71 | 3 |" in markdown("plan", alone, SCORES).splitlines()
