"""Alerts of a run that is trained in several starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stack.cli import main
from stack.train.distill import DistillTask
from tests.forked import ROOT


def test_an_alert_is_told_once_over_all_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first row is of the first start, its twentieth of the second."""

    def clipped(self: DistillTask, figures: dict[str, Any]) -> dict[str, Any]:
        return {"r/clipped": 0.9}

    monkeypatch.setattr(DistillTask, "summary", clipped)
    run = tmp_path / "run"
    small = [f"out={run}", "name=run", "global_batch=32", "log={every: 1, sample_every: 0}"]
    recipe = str(ROOT / "recipes/toy2d_fkl.yaml")
    for iterations in (12, 24, 48):
        assert main(["distill", recipe, "--resume", *small, f"iterations={iterations}"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("event") == "resume"] == [12, 24]
    assert [row["step"] for row in rows if row.get("event") == "alert"] == [20]
