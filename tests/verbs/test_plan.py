"""``stack plan``: what it prints and writes, and plans that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stack.arguments.tools import GPU_NAMES
from stack.cli import main
from stack.config.load import load_recipe
from stack.nets.published import unet_config
from stack.train.budget import GPUS
from stack.train.build_plan import Planner
from tests.pipeline import ROOT

COYO = str(ROOT / "recipes/coyo_js.yaml")
NAMES = {
    *("gpus", "fits", "bytes_per_gpu", "flops_per_iteration", "bytes_communicated"),
    *("images_per_second", "days", "gpu_hours", "checkpoint_bytes"),
}


def plan(out: Path, *words: str) -> tuple[int, dict]:
    status = main(["plan", COYO, *words, "--json", str(out / "plan.json")])
    return status, json.loads((out / "plan.json").read_text())


def test_the_papers_run_on_64_gpus(tmp_path, capsys):
    status, found = plan(tmp_path, "--gpus", "64")
    assert status == 0
    assert set(found) >= NAMES
    assert found["fits"]
    # 60K iterations of 1024 samples, with approximate R1: 5.5 forwards of .803 TFLOP each.
    assert found["flops"] == pytest.approx(2.72e20, rel=0.01)
    # 16 bytes for each parameter of student and fake score in training, 4 for the average.
    parts = found["bytes_per_gpu"]
    state = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert state == pytest.approx(2 * 859_520_964 * 16, rel=0.002)
    assert parts["averages"] == 859_520_964 * 4
    # All-reduced: twice what all networks have, the student's every tenth time.
    sent = 2 * 63 / 64 * 4 * 859_520_964 * (1 + 0.1)
    assert found["bytes_communicated"] == pytest.approx(sent, rel=0.002)
    # At 40% of 989 TFLOP/s; what is sent is on top, and student updates are ten times as rare.
    assert found["gpu_hours_computing"] == pytest.approx(found["flops"] / (0.4 * 989e12) / 3600)
    assert found["gpu_hours"] > found["gpu_hours_computing"]
    assert found["days_if_student_updates"] == pytest.approx(10 * found["days"])
    out = capsys.readouterr().out
    assert "60,000 iterations" in out
    assert "60,000 student updates" in out
    assert "64 x h100, ddp, batch 1024 = 64 ranks x 1 x 16" in out
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(unet_config("small"), GPUS["h100"], gpus=64, node=8, share=0.4)


@pytest.mark.parametrize("backend", ["fsdp", "zero1", "zero2", "zero3"])
def test_what_is_cut_over_ranks_takes_less_of_each(planner, backend):
    whole, cut = (
        planner.plan(load_recipe(COYO, [f"parallel.backend={name}"])).bytes_per_gpu
        for name in ("ddp", backend)
    )
    assert cut["optimizer"] == pytest.approx(whole["optimizer"] / 64, rel=1e-6)
    assert sum(cut.values()) < sum(whole.values())


@pytest.mark.slow
def test_a_plan_that_does_not_fit_says_what_would(tmp_path, capsys):
    words = ["--gpus", "1", "--gpu", "rtx4090", "parallel.backend=none", "data.global_batch=64"]
    status, found = plan(tmp_path, *words)
    assert (status, found["fits"]) == (2, False)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: does not fit: ")
    remedy = error.partition("it would with ")[2].rpartition(" (")[0].split()
    assert "optim.fake.kind=paged_adamw8bit" in remedy
    assert plan(tmp_path, *words, *remedy)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "7"], "7 ranks of 1 micro-batches do not divide the global batch 1024"),
        (["--gpus", "8", "teacher.path=nowhere"], "nowhere: no config.json of a UNet"),
        (["--gpus", "8", "teacher={kind: mixture2d}"], "only distillations of a pipeline"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, message):
    assert main(["plan", COYO, *words, "parallel.micro_batch=null"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_the_gpus_on_the_command_line_are_those_that_are_known():
    assert set(GPU_NAMES) == set(GPUS)
