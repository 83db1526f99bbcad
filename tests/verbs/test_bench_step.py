"""``stack bench step``: what it counts, prints and writes, and that plans hold what steps hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stack.cli import main
from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.nets.edm_blocks import CIFAR10, IMAGENET64
from stack.parallel.memory import PeakBytes
from stack.train.budget import GPUS
from stack.train.build_cost import count_flops
from stack.train.build_plan import Planner
from stack.train.build_subject import Subject, edm_subject, sd_subject
from stack.verbs import bench_step
from stack.verbs.bench_step import STEPS, Steps
from stack.verbs.plan import subject_of
from tests.cli.refusal import refused
from tests.edm_world import distill_fields, make_edm_world
from tests.forked import ROOT
from tests.pipeline import make_teacher, write_recipe
from tests.train.small import RECIPE, recipe_of, two_levels

NOT_OF_A_STEP = ("text and autoencoder", "sample grids", "libraries")
HEAD = "gan.resolutions=[8]"
PLAIN = ["precision=fp32", HEAD, "parallel={backend: none}"]


@pytest.fixture(autouse=True)
def _small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate that steps are compared with, of a product that takes no time."""
    monkeypatch.setitem(bench_step._PRODUCT, "cpu", 64)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a UNet of two levels."""
    file = tmp_path_factory.mktemp("unet") / "config.json"
    file.write_text(json.dumps(two_levels()))
    return file


def bench(unet: Path, out: Path, *words: str) -> dict[str, Any]:
    command = ["bench", "step", RECIPE, *PLAIN, "--unet", str(unet), "--repeats", "1"]
    assert main([*command, *words, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_figures_of_every_step(unet: Path, tmp_path: Path, capsys: Any) -> None:
    trace = tmp_path / "traces" / "joint.json"
    found = bench(unet, tmp_path / "step.json", "--profile", str(trace))
    for step in STEPS:
        row = found[step]
        assert {"seconds", "cpu_seconds", "flops", "unet_forwards", "peak_bytes"} <= row.keys()
        assert row["flops_per_second"] == pytest.approx(row["flops"] / row["seconds"])
    flops = {step: found[step]["flops"] for step in STEPS}
    forward = flops["joint"] / found["joint"]["unet_forwards"]
    assert flops["joint"] == pytest.approx(flops["student"] + flops["critic"] - forward)
    assert found["batch"] == 2
    cycle = found["joint"]["seconds"] + 9 * found["critic"]["seconds"]
    assert found["images_per_second"] == pytest.approx(2 * 10 / cycle)
    assert any(
        "conv" in row.get("name", "") for row in json.loads(trace.read_text())["traceEvents"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(STEPS)] == list(STEPS)


def test_two_settings_by_turns(unet: Path, tmp_path: Path, capsys: Any) -> None:
    """Recomputation takes less memory, and no other FLOPs are told."""
    settings = ["compute.checkpointing=none", "'compute={checkpointing: full}' gan.r1_gamma=1"]
    found = bench(unet, tmp_path / "two.json", "--compare", *settings)
    assert list(found) == settings
    kept, again = (found[name]["joint"] for name in settings)
    assert again["peak_bytes"] < kept["peak_bytes"]
    assert again["flops"] == kept["flops"]
    assert f"joint step of {settings[1]}: " in capsys.readouterr().out


def test_two_teachers_by_turns(tmp_path: Path, capsys: Any) -> None:
    """Each setting has the network of its own teacher, and the trace is the first one's."""
    settings = []
    for channels in ((8, 8), (8, 16)):
        folder = tmp_path / str(channels[1])
        make_teacher(folder, channels)
        settings.append(f"teacher.path={folder}")
    trace, out = tmp_path / "trace.json", tmp_path / "out.json"
    command = ["bench", "step", RECIPE, *PLAIN, "--repeats", "1", "--json", str(out)]
    assert main([*command, "--compare", *settings, "--profile", str(trace)]) == 0
    assert f"{trace}: trace of a joint step of {settings[0]}" in capsys.readouterr().out
    found = json.loads(out.read_text())
    expected = {}
    for setting in settings:
        recipe = load_recipe(RECIPE, [*PLAIN, setting])
        assert isinstance(recipe, DistillRecipe)
        expected[setting] = 2 * count_flops(recipe, subject_of(recipe)).joint
    assert {name: found[name]["joint"]["flops"] for name in found} == expected
    assert len(set(expected.values())) == 2


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_and_moments_are_as_planned(kind: str, precision: str) -> None:
    """To 2%: all that is there between iterations."""
    kinds = [f"optim.{name}.kind={kind}" for name in ("student", "fake")]
    recipe = recipe_of(f"precision={precision}", "data.global_batch=2", *kinds, size=32)
    # Wider than the small one: bitsandbytes keeps small weights' moments in float32.
    config = two_levels(8, block_out_channels=(128, 256))
    assert_held_as_planned(recipe, sd_subject(config))


def assert_held_as_planned(recipe: DistillRecipe, subject: Subject) -> None:
    plan = Planner(subject, GPUS["h100"], gpus=1, node=8, share=0.4).plan(recipe)
    planned = plan.bytes_per_gpu
    parts = ("weights", "optimizer", "averages", "teacher")
    steps = Steps(recipe, subject, 2)
    steps.step("joint")
    held = PeakBytes(steps.held()).live
    assert held == pytest.approx(sum(planned[part] for part in parts), rel=0.02)


@pytest.mark.parametrize("samples", [2, 8])
def test_the_peak_is_as_planned(samples: int) -> None:
    """To 3%, of tensors on a CPU, where attention and precision are told apart from a GPU's: of few
    samples, at whose peak gradients count, and of more, whose activations do."""
    config = two_levels(8, block_out_channels=(64, 128))
    recipe = recipe_of(
        "student_every=1", f"data.global_batch={samples}", "compute.attention=math", size=32
    )
    planned = Planner(sd_subject(config), GPUS["h100"], 1, 8, 0.4).plan(recipe).bytes_per_gpu
    expected = sum(planned[part] for part in planned if part not in NOT_OF_A_STEP)
    steps = Steps(recipe, sd_subject(config), samples)
    steps.step("joint")
    assert steps.peak_bytes("joint") == pytest.approx(expected, rel=0.03)


def test_micro_batches_are_the_recipes(unet: Path, tmp_path: Path) -> None:
    """Steps of two need a sweep before the student moves, which counts."""
    whole = bench(unet, tmp_path / "whole.json", "--batch", "4")
    parts = bench(unet, tmp_path / "parts.json", "--batch", "4", "parallel.micro_batch=2")
    assert (whole["micro_batches"], parts["micro_batches"]) == (1, 2)
    assert parts["joint"]["peak_bytes"] < whole["joint"]["peak_bytes"]
    assert parts["critic"]["flops"] == whole["critic"]["flops"]
    assert parts["student"]["flops"] > 1.1 * whole["student"]["flops"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["parallel.backend=zero2"], "parallel.backend: zero2 cuts what several processes hold"),
        (["parallel.backend=fsdp"], "set parallel.backend=none"),
        (["--compare", "gan.r1_gamma=0", "gan.r1_gamma=0"], "the two settings are the same"),
        (["--compare", "seed=1", "out='x"], "--compare: out='x: No closing quotation; quote it"),
        (["--profile", "/dev/null/trace.json"], "--profile: /dev/null/trace.json: "),
        (["--batch", "3", "parallel.accumulation=2"], "do not divide the global batch 3"),
        (["optim.student.lr=1e38", "optim.fake.lr=1e38"], "is not finite"),
    ],
)
def test_what_cannot_be_timed_is_one_line(
    unet: Path, capsys: Any, words: list[str], message: str
) -> None:
    command = ["bench", "step", RECIPE, *PLAIN, "--unet", str(unet), "--repeats", "1"]
    assert main([*command, *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "full"), [("cifar10_fkl", CIFAR10), ("imagenet64_js", IMAGENET64)]
)
def test_weights_and_moments_of_edm_networks(name: str, full: Any, precision: str) -> None:
    small = {"img_resolution": 16, "model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1}
    overrides = [f"precision={precision}", "parallel={backend: none}", "data.global_batch=2", HEAD]
    recipe = load_recipe(ROOT / f"recipes/{name}.yaml", overrides)
    assert isinstance(recipe, DistillRecipe)
    subject = edm_subject(full.model_copy(update=small | {"attn_resolutions": (8,)}))
    assert_held_as_planned(recipe, subject)


def test_an_edm_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The network is the teacher's, by its config."""
    world = make_edm_world(tmp_path)
    recipe = write_recipe(tmp_path / "r", distill_fields(world))
    out = tmp_path / "step.json"
    assert main(["bench", "step", str(recipe), "--repeats", "1", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert all(found[step]["seconds"] > 0 and found[step]["flops"] > 0 for step in STEPS)
    told = refused(capsys, "bench", "step", recipe, "--unet", "small")
    assert told == "--unet: small: the recipe's teacher is an EDM network"
