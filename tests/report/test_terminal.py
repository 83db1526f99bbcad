"""Figures on a terminal: of every model, with intervals where there are some, 80 columns wide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from stack.cli import main
from stack.report.terminal import figures_table

INTERVAL = {"value": 0.7169, "low": 0.6712, "high": 0.7604, "samples": 5000, "few_samples": False}
EVALUATION = {
    "student": {"nfe": 1, "images_per_second": 2178.4, "recall": 0.5},
    "teacher": {
        "nfe": 50,
        "images_per_second": 85.04,
        "frechet_distance": 0.7169,
        "intervals": {"frechet_distance": INTERVAL},
    },
    "samples": 5000,
}


def lines(width: int = 80) -> list[list[str]]:
    """Cells of the table as it is printed."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(figures_table(EVALUATION))
    told = captured.get().splitlines()
    assert max(map(len, told)) <= width
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in told if "│" in line]


def test_every_figure_of_every_model() -> None:
    assert lines() == [
        ["nfe", "50", "1"],
        ["images_per_second", "85", "2.18e+03"],
        ["frechet_distance", "0.7169 [0.6712, 0.7604; 5000]", "-"],
        ["recall", "-", "0.5"],
    ]


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_report_ends_with_figures_and_places(
    evaluated: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "loss/fake": 0.5}\n')
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (6, 2)).save(tmp_path / "samples" / "grid.png")
    if evaluated:
        (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    assert main(["report", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-2:] == [
        f"pictures  {tmp_path}/samples/grid.png",
        f"report    {tmp_path}/report.html",
    ]
    assert ("frechet_distance" in told) == evaluated
