"""``stack plan``: what it prints and writes, and plans that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stack.arguments.tools import GPU_NAMES
from stack.cli import main
from stack.config.load import load_recipe
from stack.train import build_cost
from stack.train.budget import GPUS
from stack.train.build_plan import Planner, _variants
from stack.train.build_subject import sd_subject, text_flops
from stack.verbs.plan import subject_of
from tests.forked import ROOT
from tests.pipeline import World
from tests.train.small import two_levels

COYO = str(ROOT / "recipes/coyo_js.yaml")
DAY = str(ROOT / "recipes/coyo_100k_1gpu.yaml")
IMAGENET = str(ROOT / "recipes/imagenet64_js.yaml")
IMAGENET_PARAMETERS = 295_899_267
NAMES = {
    *("gpus", "fits", "bytes_per_gpu", "flops_per_iteration", "bytes_communicated"),
    *("images_per_second", "days", "gpu_hours", "checkpoint_bytes"),
}


def plan(out: Path, *words: str, recipe: str = COYO) -> tuple[int, dict]:
    status = main(["plan", recipe, *words, "--json", str(out / "plan.json")])
    return status, json.loads((out / "plan.json").read_text())


def test_the_papers_run_on_64_gpus(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build_cost, "_KNOWN", {})  # What is counted is told.
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
    # At 40% of 989 TFLOP/s, and captions, of 13.3 GFLOP each, of 67; what is sent is on top, and
    # student updates are ten times as rare.
    captions = 60_000 * found["text_flops_per_iteration"]
    assert captions == pytest.approx(60_000 * 1024 * 13.3e9, rel=0.01)
    hours = (found["flops"] / 989e12 + captions / 67e12) / 0.4 / 3600
    assert found["gpu_hours_computing"] == pytest.approx(hours)
    assert found["gpu_hours"] > found["gpu_hours_computing"]
    assert found["days_if_student_updates"] == pytest.approx(10 * found["days"])
    out, told = capsys.readouterr()
    assert "counting operations of a sample\n" in told
    assert "captions of an iteration       1.36e+13 FLOP in float32, 7.94 ms" in out
    assert "60,000 iterations" in out
    assert "60,000 student updates" in out
    assert "64 x h100, ddp, batch 1024 = 64 ranks x 1 x 16" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_day_of_one_h100_is_enough_for_100k_pictures(tmp_path):
    """As the recipe says; its card's memory, too."""
    status, found = plan(tmp_path, "--gpus", "1", "--gpu", "h100", recipe=DAY)
    assert (status, found["fits"]) == (0, True)
    assert found["days"] <= 1


def test_an_edm_network_that_is_not_there_yet(tmp_path, capsys):
    """Published, so known by its folder's name."""
    status, found = plan(tmp_path, "--gpus", "16", recipe=IMAGENET)
    assert (status, found["fits"]) == (0, True)
    assert set(found) >= NAMES
    assert found["parameters"]["unet"] == IMAGENET_PARAMETERS
    parts = found["bytes_per_gpu"]
    assert parts["text and autoencoder"] == 0
    assert parts["averages"] == 3 * 4 * IMAGENET_PARAMETERS
    # Without guidance and R1: what a student step and a critic step need, and no more.
    assert found["unet_forwards"]["student"] < 5.4
    assert found["unet_forwards"]["critic"] < 4.6
    out = capsys.readouterr().out
    assert "imagenet64_js: 16 x h100, ddp, batch 512 = 16 ranks x 2 x 16" in out
    assert "parameters of the EDM network  295,899,267" in out
    assert "text and autoencoder" not in out
    assert "captions" not in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_pipelines_own_text_encoder_is_what_counts(world: World) -> None:
    """Of a folder that is there: one layer of width 8."""
    subject = subject_of(load_recipe(COYO, [f"teacher={{path: {world.teacher}}}"]))
    config = json.loads((world.teacher / "text_encoder" / "config.json").read_text())
    assert subject.text_flops == text_flops(config) < 1e6


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(sd_subject(two_levels()), GPUS["h100"], gpus=64, node=8, share=0.4)


@pytest.mark.parametrize("backend", ["fsdp", "zero1", "zero2", "zero3"])
def test_what_is_cut_over_ranks_takes_less_of_each(planner, backend):
    whole, cut = (
        planner.plan(
            load_recipe(COYO, [f"parallel.backend={name}", "gan.resolutions=[8]"])
        ).bytes_per_gpu
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
        (["--gpus", "8", "teacher={kind: mixture2d}"], "only distillations of a pipeline or an"),
        (["--gpus", "8", "teacher={kind: edm, path: gone}"], "gone: config.json: no such file"),
        (["--gpus", "64", "parallel.backend=none"], "none is one process, but there are 64 GPUs"),
        (["--gpus", "512"], "world_size: 512 does not divide lanes 256"),
        (
            ["--gpus", "8", "parallel.backend=fsdp", "parallel.shard_size=3"],
            "parallel.shard_size: 3 does not divide the 8 ranks",
        ),
        (
            ["--gpus", "8", "parallel.backend=fsdp", "optim.fake.kind=paged_adamw8bit"],
            "paged_adamw8bit does not go with fsdp",
        ),
        (["--gpus", "8", "--share", "0"], "--share: 0: not above 0"),
        (["--gpus", "8", "--share", "-0.4"], "--share: -0.4: not above 0"),
        (["--gpus", "8", "--share", "nan"], "--share: nan: not above 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, message):
    assert main(["plan", COYO, *words, "parallel.micro_batch=null"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_the_gpus_on_the_command_line_are_those_that_are_known():
    assert set(GPU_NAMES) == set(GPUS)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["parallel.micro_batch=null", "parallel.accumulation=4"],
        ["parallel={backend: fsdp, shard_size: 8, offload: true}"],
        ["parallel={backend: zero2, micro_batch: 2}", "compute.checkpointing=full"],
    ],
)
def test_what_would_fit_is_what_a_command_takes(fields):
    """All that it changes stands there, and the recipe has nothing against it."""
    tried = list(_variants(load_recipe(COYO, fields), 64))
    assert len({tuple(words) for words in tried}) == len(tried) > 2
    for words in tried:
        changed = load_recipe(COYO, [*fields, *words])
        assert not any("{" in word for word in words)  # Field by field, and no section anew.
        if any("micro_batch" in word for word in words):
            assert changed.parallel.accumulation == 1
