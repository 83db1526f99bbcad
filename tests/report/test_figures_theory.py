"""Fig. 3 and 4a: the paper's own numbers, and the files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from stack.report.canvas import DIVERGENCES
from stack.report.figures_theory import divergence_curves, h_variance, variance_of_h

GAPS = (1, 2, 3)
SQUARED = {
    "jensen_shannon": (0.256, 1.22, 4.07),
    "squared_hellinger": (0.284, 1.72, 8.49),
    "jeffreys": (0.43, 13.4, 2026),
    "forward_kl": (1.72, 53.6, 8102),
    "softened_reverse_kl": (0.112, 0.103, 0.049),
    "reverse_kl": (0, 0, 0),
}
LITERAL = {
    "jensen_shannon": (0.102, 0.275, 0.401),
    "squared_hellinger": (0.063, 0.261, 0.689),
    "jeffreys": (0.859, 26.8, 4051),
}


@pytest.mark.parametrize("name", SQUARED)
def test_variance_of_h_is_the_papers(name: str) -> None:
    found = [h_variance(name, gap) for gap in GAPS]
    assert found == pytest.approx(SQUARED[name], rel=6e-3, abs=1e-12)


@pytest.mark.parametrize("name", LITERAL)
def test_so_is_the_literal_reading(name: str) -> None:
    found = [h_variance(name, gap, "literal") for gap in GAPS]
    assert found == pytest.approx(LITERAL[name], rel=6e-3)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_variance_figure_holds_the_same_numbers(tmp_path: Path) -> None:
    paths = variance_of_h(tmp_path / "fig4a", [0.5, 1.0, 2.0])
    assert [path.name for path in paths] == ["fig4a.png", "fig4a.svg", "fig4a.csv"]
    rows = rows_of(paths[2])
    assert len(rows) == 3 * len(DIVERGENCES)
    for row in rows:
        if row["gap"] == "1":
            assert float(row["squared"]) == pytest.approx(
                SQUARED[row["divergence"]][0], rel=6e-3, abs=1e-12
            )
    text = paths[1].read_text()
    assert all(f">{title}" in text for title in DIVERGENCES.values())


def test_what_is_zero_is_drawn_and_said(tmp_path: Path) -> None:
    """By rounding it is 1e-32 where both Gaussians are one, and other curves begin there too."""
    text = variance_of_h(tmp_path / "fig4a", [0.0, 0.5, 1.0])[1].read_text()
    assert text.count(">reverse KL (zero)<") == 1
    assert text.count("(zero)") == 1
    assert text.count("stroke-dasharray") >= 3  # A line in both panels, and in the legend.


@pytest.mark.parametrize("draw", [divergence_curves, variance_of_h])
def test_the_columns_are_those_of_the_docstring(draw: Any, tmp_path: Path) -> None:
    header = draw(tmp_path / "fig")[2].read_text().splitlines()[0]
    assert f"CSV with {header.replace(',', ', ')}." in draw.__doc__


def test_divergence_figure_holds_f_prime_and_h(tmp_path: Path) -> None:
    rows = rows_of(divergence_curves(tmp_path / "fig3")[2])
    at_one = {row["divergence"]: row for row in rows if row["r"] == "1"}
    expected = {
        "reverse_kl": (1, 1),
        "softened_reverse_kl": (1, 0.5),
        "jensen_shannon": (0, 0.5),
        "squared_hellinger": (0.5, 0.25),
        "forward_kl": (1, 1),
        "jeffreys": (0, 2),
    }
    for name, (df, h) in expected.items():
        found = float(at_one[name]["abs_df"]), float(at_one[name]["h"])
        assert found == pytest.approx((df, h), abs=1e-6)


def test_a_figure_drawn_twice_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = (variance_of_h(tmp_path / name, [1.0, 2.0]) for name in ("a", "b"))
    for one, other in zip(first[1:], second[1:], strict=True):
        assert one.read_bytes() == other.read_bytes()
