"""``stack bench step``: what it counts, prints and writes, and that plans hold what steps hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stack.cli import main
from stack.train.budget import GPUS
from stack.train.build_plan import Planner
from stack.verbs.bench_step import STEPS, Steps
from tests.train.small import RECIPE, config_of, recipe_of

SIZE = 16
TWO_LEVELS = {
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
HEAD = "gan.resolutions=[8]"
PLAIN = ["precision=fp32", HEAD, "parallel={backend: none}"]


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a UNet of two levels."""
    file = tmp_path_factory.mktemp("unet") / "config.json"
    file.write_text(json.dumps(config_of(SIZE, **TWO_LEVELS)))
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
    settings = ["compute.checkpointing=none", "compute.checkpointing=full gan.r1_gamma=1"]
    found = bench(unet, tmp_path / "two.json", "--compare", *settings)
    assert list(found) == settings
    kept, again = (found[name]["joint"] for name in settings)
    assert again["peak_bytes"] < kept["peak_bytes"]
    assert again["flops"] == kept["flops"]
    assert f"joint step of {settings[1]}: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_and_moments_are_as_planned(kind: str, precision: str) -> None:
    """To 2%: all that is there between iterations."""
    kinds = [f"optim.{name}.kind={kind}" for name in ("student", "fake")]
    recipe = recipe_of(f"precision={precision}", "data.global_batch=2", HEAD, *kinds)
    # Wider than the small one: bitsandbytes keeps small weights' moments in float32.
    config = config_of(SIZE, **TWO_LEVELS | {"block_out_channels": (128, 256)})
    plan = Planner(config, GPUS["h100"], gpus=1, node=8, share=0.4).plan(recipe)
    planned = plan.bytes_per_gpu
    parts = ("weights", "optimizer", "averages", "teacher")
    steps = Steps(recipe, config, 2)
    steps.step("joint")
    assert steps.held_bytes() == pytest.approx(sum(planned[part] for part in parts), rel=0.02)
