"""The whole input of a distillation in seconds: an untrained teacher and a handful of samples."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from data_prep.captions import captions
from data_prep.latents import latents
from data_prep.shards import ShardFolder, Tally
from stack.checkpoint import folders, read, verify
from stack.cli import main
from stack.nets.ema import EMA
from stack.nets.sd15 import SDDenoiser
from stack.nets.vae import Autoencoder
from stack.train.build_teacher import TeacherParts, save_teacher
from stack.train.pretrain import (
    SD_SCHEDULE,
    module_of,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    new_vae,
)
from tests import forked

SIDE, SAMPLES, SHARD = 16, 52, 20
DIGITS = ("zero", "one", "two", "three")
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class World:
    """Folders that no test changes; a test that wants to makes a copy."""

    teacher: Path
    shards: Path
    data: Path


def make_world(root: Path) -> World:
    """Pictures and captions, an untrained teacher, latents and token ids."""
    world = World(root / "teacher", root / "shards", root / "data")
    make_shards(world.shards)
    make_teacher(world.teacher)
    latents(world.shards, root / "latents", vae=world.teacher)
    captions(root / "latents", world.data, tokenizer=world.teacher)
    return world


def caption(number: int) -> str:
    """Every fifth leaves the digit open."""
    return f"a {COLOURS[number % 3]} {'digit' if number % 5 == 4 else DIGITS[number % 4]}"


def attributes(number: int, text: str) -> dict[str, Any]:
    """What `data_prep digits` notes beside a picture."""
    values = {"colour": COLOURS[number % 3], "digit": DIGITS[number % 4]}
    states = [name for name, value in values.items() if value in text.split()]
    return {**values, "scan": number, "states": states}


def make_shards(folder: Path) -> None:
    """SAMPLES noisy pictures with captions and attributes."""
    out = ShardFolder(folder, {"test": SAMPLES})
    rng = np.random.default_rng(0)
    for first in range(0, SAMPLES, SHARD):
        rows = []
        for number in range(first, min(first + SHARD, SAMPLES)):
            png = io.BytesIO()
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(png, "png")
            text = caption(number)
            fields = {"png": png.getvalue(), "txt": text.encode()}
            fields["json"] = json.dumps(attributes(number, text)).encode()
            rows.append((f"{number:06d}", fields))
        tally = Tally(sizes=Counter({f"{SIDE}x{SIDE}": len(rows)}))
        out.write(f"{first // SHARD:06d}.tar", rows, tally)
    out.finish()


def make_teacher(folder: Path, channels: Sequence[int] = (8, 16)) -> None:
    """An untrained pipeline in Stable Diffusion's layout; all but the UNet is the same for any
    channels."""
    torch.manual_seed(0)
    vae = new_vae(SIDE, channels=(8, 8), layers=1, groups=4)
    vae.register_to_config(scaling_factor=0.75)
    tokenizer = new_tokenizer([caption(number) for number in range(12)], 600)
    text = new_text_encoder(tokenizer, width=8, layers=1, heads=2)
    unet = new_unet(
        SIDE // 2, 8, channels=channels, attention=(False, False), layers=1, heads=2, groups=4
    )
    denoiser = SDDenoiser(unet, SD_SCHEDULE, "v_prediction")
    average = EMA(dict(module_of(denoiser, text).named_parameters()), 0.5)
    save_teacher(TeacherParts(denoiser, text, Autoencoder(vae), average), folder)


def recipe_fields(world: World, **changed: Any) -> dict[str, Any]:
    """A recipe of six quick iterations; ``changed`` replaces whole entries."""
    adam = {"lr": 1e-3, "betas": [0.0, 0.999], "warmup": 2}
    return {
        "name": "tiny",
        "teacher": {"path": str(world.teacher)},
        "data": {"folders": [str(world.data)], "global_batch": 8, "window": 16},
        "divergence": "js",
        "student_every": 2,
        "iterations": 6,
        "guidance": 1.75,
        "gan": {"weight": 0.01, "resolutions": [8, 4], "width": 8},
        "optim": {"student": adam, "fake": adam, "heads": adam},
        "ratio": {"bins": 3},
        "ema": 0.9,
        "log": {"every": 1, "prompts": ["a red zero", "a blue one"]},
        "checkpoint": {"every": 2},
        **changed,
    }


def pretrain_fields(world: World, **changed: Any) -> dict[str, Any]:
    """A recipe of a teacher, four steps for each of its two trainings."""
    adam = {"lr": 1e-3, "warmup": 2}
    return {
        "job": "pretrain",
        "name": "tiny_teacher",
        "data": {"folders": [str(world.shards)], "global_batch": 8, "window": 16},
        "vae": {"channels": [8, 8], "groups": 4, "iterations": 4, "batch": 8, "optim": adam},
        "text": {"vocabulary": 600, "width": 8},
        "unet": {
            "channels": [8, 16],
            "attention": [True, False],
            "groups": 4,
            "iterations": 16,
            "batch": 8,
            "optim": adam,
        },
        "log": {"every": 1},
        "checkpoint": {"every": 8},
        **changed,
    }


def write_recipe(folder: Path, fields: Mapping[str, Any]) -> Path:
    """The recipe as a file in ``folder``, with its run folder beside it unless it names one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"out": str(folder / "run"), **fields}, sort_keys=False))
    return path


def state_of(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and JSON state of a run's newest checkpoint, without the clock."""
    folder, _ = verify.latest(run / "checkpoints")
    assert folder
    state = json.loads((folder / "state.json").read_text())
    state.pop("seconds")
    return dict(_tensors(folder, (folder / folders.COMMIT).read_text())), state


@lru_cache(maxsize=16)
def _tensors(folder: Path, commit: str) -> dict[str, torch.Tensor]:
    """Read once: many tests compare with the same run. A step that is saved anew is another one by
    what its commit says."""
    return read.read_tensors(folder, "")


def same_tensors(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> list[str]:
    """Names whose tensors are not equal bit for bit."""
    assert a.keys() == b.keys()
    return [
        name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])
    ]


_CLOCK = ("time", "images_per_second", "data_wait", "save_wait", "memory/", "ranks/")
_BY_LEVEL = ("levels/", "h/variance/")
"""Tables, and differences of large sums: compared where they are made."""


def metrics_of(run: Path) -> dict[int, dict[str, float]]:
    """The last row of every logged step, without clock, memory and what is per noise level."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        row["step"]: {n: v for n, v in row.items() if not n.startswith((*_CLOCK, *_BY_LEVEL))}
        for row in rows
        if "event" not in row
    }


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below ``folder``: time of change and hash."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def start(arguments: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
    """``python -m stack ARGUMENTS`` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "stack", *map(str, arguments)],
        cwd=forked.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def run_stack(*arguments: str, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own, or as ranks of torchrun's, to its end."""
    return forked.run("stack", *arguments, ranks=ranks)


def finish(folder: Path, fields: dict[str, Any], *arguments: str | Path) -> Path:
    """A run in ``folder``, which must end well."""
    recipe = write_recipe(folder, fields)
    assert main(["distill", str(recipe), *map(str, arguments)]) == 0
    return folder / "run"


def assert_same_state(run: Path, expected: Path) -> None:
    """The newest checkpoints hold the same, bit for bit."""
    (tensors, state), (expected_tensors, expected_state) = state_of(run), state_of(expected)
    assert same_tensors(tensors, expected_tensors) == []
    assert state == expected_state


def saved_steps(run: Path) -> list[int]:
    """Steps of the committed checkpoints, in order."""
    return [folders.step_of(folder) for folder in folders.committed(run / "checkpoints")]


def logged_rows(run: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl, events too."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
