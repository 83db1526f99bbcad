"""The demo's bars over several runs: ``python tests/drill.py FOLDER...``, by ``make drill``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

EVALUATION = Path("runs/digits_js/evaluation.json")


def bars(found: dict[str, Any]) -> list[tuple[str, float, bool]]:
    """Name, figure and whether it is good enough, of one evaluation."""
    teacher, student = found["teacher"], found["student"]
    ratio = student["frechet_distance"] / teacher["frechet_distance"]
    spread = student["mode_tv"] - teacher["mode_tv"]
    judge = min(found["judge"]["accuracy"].values())
    return [
        ("samples", found["samples"], found["samples"] >= 5000),
        ("judge on held-out scans", judge, judge >= 0.98),
        ("teacher's accuracy", teacher["caption_accuracy"], teacher["caption_accuracy"] >= 0.97),
        ("student's accuracy", student["caption_accuracy"], student["caption_accuracy"] >= 0.97),
        ("Frechet distance, ratio", ratio, ratio <= 1.5),
        ("total variation, difference", spread, spread <= 0.05),
        ("speedup", found["speedup"], found["speedup"] >= 20),
    ]


def main(folders: list[Path]) -> int:
    missed = False
    for folder in folders:
        print(folder)
        for name, figure, reached in bars(json.loads((folder / EVALUATION).read_text())):
            print(f"  {name:30} {figure:9.4g} {'' if reached else 'MISSED'}")
            missed |= not reached
    return int(missed)


if __name__ == "__main__":
    sys.exit(main([Path(folder) for folder in sys.argv[1:]]))
