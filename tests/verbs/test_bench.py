"""``stack bench``: what it prints and writes, on shards that take no time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stack.cli import main
from stack.verbs.bench_order import quality
from tests.data.conftest import write_folder

RATES = {"samples_per_second", "samples_per_cpu_second"}
READERS = {"stream", "webdataset", "raw"}


@pytest.mark.parametrize(
    ("options", "readers"),
    [([], READERS), (["--field", "image", "--field", "text"], READERS | {"decode"})],
)
def test_every_reader_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], readers: set[str]
) -> None:
    folder = write_folder(tmp_path / "shards", [20, 7, 31])
    out = tmp_path / "figures.json"
    arguments = ["--seconds", "1", "--batch", "16", "--json", str(out), *options]
    assert main(["bench", "data", str(folder), *arguments]) == 0
    figures = json.loads(out.read_text())
    assert set(figures) == readers
    for rates in figures.values():
        assert set(rates) == RATES
        assert min(rates.values()) > 0
    assert readers <= set(capsys.readouterr().out.replace("│", " ").split())


def test_a_folder_without_shards_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "data", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/no: no such folder of shards\n"


def test_more_lanes_and_wider_windows_shuffle_better(tmp_path: Path) -> None:
    out = tmp_path / "order.json"
    layout = ["--shards", "20", "--samples", "200", "--batch", "40", "--json", str(out)]
    assert main(["bench", "order", *layout, "--lanes", "2", "40", "--window", "1", "800"]) == 0
    told = json.loads(out.read_text())
    few_narrow, few_wide, many_narrow, many_wide, full = told["rows"]
    assert few_narrow["rank_correlation"] > 0.9 > 0.5 > few_wide["rank_correlation"]
    assert abs(many_wide["rank_correlation"]) < 0.1
    assert few_narrow["label_entropy"] < few_wide["label_entropy"] < full["label_entropy"]
    # Lanes that start at distant places even the labels out.
    assert many_wide["label_entropy"] > full["label_entropy"]
    assert many_narrow["neighbours"] > 0.9 > 0.1 > many_wide["neighbours"]


@pytest.mark.parametrize(
    ("arrange", "correlation", "entropy", "neighbours"),
    [
        (lambda numbers: numbers, 1.0, 0.0, 1.0),
        (lambda numbers: numbers[::-1], -1.0, 0.0, 0.875),
        (lambda numbers: numbers.reshape(8, 64).T.ravel(), 1.0, 3.0, 1.0),
    ],
)
def test_the_figures_of_known_orders(
    arrange: Callable[[np.ndarray], np.ndarray],
    correlation: float,
    entropy: float,
    neighbours: float,
) -> None:
    """8 shards of 64, batches of 8: as they lie, backwards, and one of each shard by turns."""
    order = arrange(np.arange(8 * 64)).reshape(-1, 8)
    found = quality(order, 64)
    # Eight samples share a step where they come as they lie.
    assert found["rank_correlation"] == pytest.approx(correlation, abs=0.01)
    assert found["label_entropy"] == pytest.approx(entropy, abs=1e-12)
    assert found["neighbours"] == pytest.approx(neighbours, abs=0.02)
