"""A page is no wider than a phone's or a laptop's window, as a real browser lays it out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from stack.report.compare import write_comparison
from stack.report.report import write_report
from tests.report.test_compare import make
from tests.report.test_report import metrics, write_log

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
TABLES = {
    "levels/log_snr": [0],
    "levels/r_bounds": [-2.3, 3.0],
    "levels/calibration": [[[50, 50, 50.0]] * 10] * 2,
    "levels/h": [[10, 10, 12]] * 2,
    "levels/r_counts": [[1] * 12] * 2,
    "levels/h_counts": [[1] * 12] * 2,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no chromium to lay a page out"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """With all that may be wide: names, figures, tables, a grid, points in the plane."""
    folder = tmp_path_factory.mktemp("runs")
    names = [f"cifar10_small_forward_kl_without_gan_loss_seed{seed}" for seed in range(5)]
    runs = [make(folder, name, distance=1234.5 + seed) for seed, name in enumerate(names)]
    for run in runs:
        rows = [row | TABLES | {"discriminator/accuracy": 0.999} for row in metrics()]
        write_log(run / "metrics.jsonl", rows)
        Image.new("RGB", (2400, 600), "red").save(run / "samples" / "grid.png")
        Image.new("RGB", (2000, 500), "blue").save(run / "samples" / "modes.png")
        told = json.loads((run / "evaluation.json").read_text())
        (run / "evaluations").mkdir()
        (run / "evaluations" / "cifar10.json").write_text(json.dumps(told | {"suite": "cifar10"}))
    return runs


def laid_out(page: Path, width: int, folder: Path) -> tuple[int, int]:
    """Widths in CSS pixels of the page and of the window; in a frame, for a browser's own window
    may not be narrow."""
    tell = "document.title = [document.documentElement.scrollWidth, innerWidth].join('/')"
    text = page.read_text().replace("</body>", f"<script>{tell}</script></body>")
    (folder / "inner.html").write_text(text)
    outer = folder / "outer.html"
    outer.write_text(
        f'<iframe id="inner" src="inner.html" style="width:{width}px;height:800px;border:0">'
        "</iframe><script>inner.onload = () => document.title = "
        "inner.contentDocument.title</script>"
    )
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--disable-dev-shm-usage", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1600,1000"]
    command += ["--virtual-time-budget=5000", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(\d+)/(\d+)</title>", done.stdout)
    assert found, done.stderr[-2000:]
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_nothing_is_wider_than_the_window(
    kind: str, width: int, runs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    page = write_report(runs[0], out) if kind == "report" else write_comparison(runs, out)
    wide, window = laid_out(page, width, tmp_path)
    assert window == width
    assert wide <= window
