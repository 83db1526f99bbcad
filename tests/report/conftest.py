"""A small run folder with everything a report reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

RECIPE = """\
name: digits_js
seed: 3
divergence: jensen_shannon
teacher: {path: runs/teacher}
iterations: 400
student_every: 2
guidance: 1.75
"""
EVALUATION = {
    "teacher": {"nfe": 50, "frechet_distance": 2.0, "recall": 0.81, "images_per_second": 61.25},
    "student": {"nfe": 1, "frechet_distance": 2.5, "recall": 0.79, "images_per_second": 2450.0},
    "samples": 5000,
    "seed": 0,
    "speedup": 40.0,
    "real_halves_frechet_distance": 0.4567,
    "judge": {"accuracy": {"digit": 0.9958}},
    "device": "Abacus <2>, 2 threads",
}


def metrics(steps: int = 40) -> list[dict[str, Any]]:
    """Rows as training logs them; the student's figures on every other one."""
    rows = []
    for i in range(1, steps + 1):
        row = {"step": 10 * i, "time": 1.5 * i, "skipped": 0, "images_per_second": 300.0 + i}
        row |= {"loss/fake": 1 / i, "loss/discriminator": 1.3, "grad/fake": 0.5, "lr/fake": 1e-4}
        row |= {"data_wait": 0.02, "discriminator/accuracy": 0.6}
        if i % 2 == 0:
            row |= {"loss/gap": 0.5, "r/p10": 0.2, "r/p50": 1.0, "r/p90": 4.0, "r/clipped": 0.01}
            row |= {"h/p10": 0.5, "h/p50": 1.0, "h/p90": 1.5, "h/variance": 0.1, "gap/mean": 0.2}
        rows.append(row)
    return rows


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "digits_js"
    (folder / "samples").mkdir(parents=True)
    write_log(folder / "metrics.jsonl", metrics())
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    Image.new("RGB", (60, 20), "red").save(folder / "samples" / "grid.png")
    told = {"prompts": ["a red one", "a <blue> two"], "seed": 7}
    (folder / "samples" / "grid.json").write_text(json.dumps(told))
    return folder
