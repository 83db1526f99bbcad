"""The 2-D figure: modes counted as its docstring says, every dot in the CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stack.report.figures import covered_modes, mode_shares, scatter_modes

CENTRES = np.array([[0.0, 0], [4, 0], [0, 4], [4, 4]])


def dots(*counts: int) -> np.ndarray:
    """That many samples near each centre."""
    near = np.repeat(CENTRES, counts, axis=0)
    return near + 0.1 * np.random.default_rng(0).standard_normal(near.shape)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (dots(1, 1, 1, 1), [0.25, 0.25, 0.25, 0.25]),
        (dots(3, 0, 1, 0), [0.75, 0, 0.25, 0]),
        (np.array([[2.0, 2], [0, 0]]), [0.5, 0, 0, 0]),
        (np.array([[1.0, 0], [1.01, 0]]), [0.5, 0, 0, 0]),
    ],
)
def test_mode_shares(samples: np.ndarray, expected: list[float]) -> None:
    np.testing.assert_allclose(mode_shares(samples, CENTRES, reach=1.0), expected)


@pytest.mark.parametrize(
    ("counts", "covered"), [((25, 25, 25, 25), 4), ((91, 3, 3, 3), 4), ((95, 3, 2, 0), 2)]
)
def test_a_covered_mode_holds_a_tenth_of_its_share(counts: tuple[int, ...], covered: int) -> None:
    found = covered_modes(dots(*counts), dots(25, 25, 25, 25), CENTRES, reach=1.0)
    assert found == covered


def test_scatter_writes_picture_text_and_numbers(tmp_path: Path) -> None:
    rows = {
        "forward KL": {0: dots(50, 0, 0, 0), 1000: dots(20, 20, 20, 20)},
        # Two dots in 80 are a tenth of the fair quarter; one is not.
        "reverse KL": {0: dots(50, 0, 0, 0), 1000: dots(77, 2, 1, 0)},
    }
    paths = scatter_modes(tmp_path / "modes.png", dots(25, 25, 25, 25), rows, CENTRES, reach=1.0)
    assert [path.name for path in paths] == ["modes.png", "modes.svg", "modes.csv"]
    with Image.open(paths[0]) as image:
        assert image.width > image.height > 300
    text = paths[1].read_text()
    told = {f"{n} of 4 modes": text.count(f">{n} of 4 modes<") for n in range(5)}
    assert told == {
        "0 of 4 modes": 0,
        "1 of 4 modes": 2,
        "2 of 4 modes": 1,
        "3 of 4 modes": 0,
        "4 of 4 modes": 1,
    }
    assert text.count("iteration 1,000") == 2
    assert "forward KL" in text
    with paths[2].open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 100 + 50 + 80 + 50 + 80
    last = [row for row in table if row["row"] == "reverse KL" and row["iteration"] == "1000"]
    found = np.array([[float(row["x"]), float(row["y"])] for row in last])
    np.testing.assert_allclose(found, rows["reverse KL"][1000], rtol=1e-5)


def test_rows_may_differ_in_length(tmp_path: Path) -> None:
    rows = {"a": {0: dots(9, 0, 0, 0)}, "b": {0: dots(9, 0, 0, 0), 5: dots(3, 3, 3, 3)}}
    paths = scatter_modes(tmp_path / "modes", dots(9, 9, 9, 9), rows, CENTRES, reach=1.0)
    assert all(path.stat().st_size > 1000 for path in paths[:2])
    assert paths[1].read_text().count("iteration 5") == 1
