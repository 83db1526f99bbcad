"""The whole input of a pixel-space distillation in seconds: an EDM network and a few pictures."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_prep.shards import ShardFolder, Tally
from stack.nets.edm import EdmNetwork, edm_network
from stack.nets.edm_blocks import EdmConfig
from stack.nets.edm_files import save_edm

SIDE, CLASSES, SAMPLES = 8, 3, 40
CONFIG = EdmConfig(
    architecture="ddpm++",
    img_resolution=SIDE,
    label_dim=CLASSES,
    augment_dim=9,
    model_channels=8,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(4,),
)


@dataclass(frozen=True)
class EdmWorld:
    """Folders that no test changes."""

    teacher: Path
    data: Path


def make_edm_world(root: Path, **changed: Any) -> EdmWorld:
    """``changed``: fields of the network's config."""
    world = EdmWorld(root / "teacher", root / "data")
    save_edm(random_network(CONFIG.model_copy(update=changed)), world.teacher)
    out = ShardFolder(world.data, {"test": SAMPLES})
    rng = np.random.default_rng(0)
    rows = []
    for number in range(SAMPLES):
        png = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(png, "png")
        cls = str(number % CLASSES).encode()
        rows.append((f"{number:06d}", {"png": png.getvalue(), "cls": cls}))
    out.write("000000.tar", rows, Tally(sizes=Counter({f"{SIDE}x{SIDE}": SAMPLES})))
    out.finish()
    return world


def random_network(config: EdmConfig) -> EdmNetwork:
    """No layer of it is zero, as many are at the start of a training."""
    torch.manual_seed(0)
    network = edm_network(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def distill_fields(world: EdmWorld, **changed: Any) -> dict[str, Any]:
    """A recipe of six quick iterations; ``changed`` replaces whole entries."""
    adam = {"lr": 1e-3, "betas": [0.0, 0.999], "warmup": 2}
    return {
        "name": "tiny_edm",
        "teacher": {"kind": "edm", "path": str(world.teacher)},
        "data": {"folders": [str(world.data)], "global_batch": 8, "window": 16},
        "divergence": "forward_kl",
        "student_every": 2,
        "iterations": 6,
        "gan": {"weight": 0.01, "resolutions": [8, 4], "width": 8},
        "optim": {"student": adam, "fake": adam, "heads": adam},
        "ratio": {"bins": 3},
        "ema": 0.9,
        "evaluation": {"teacher_steps": 3},
        "log": {"every": 1, "sample_every": 6},
        "checkpoint": {"every": 2},
        **changed,
    }


def pretrain_edm_fields(world: EdmWorld, **changed: Any) -> dict[str, Any]:
    """A recipe of a teacher in six steps."""
    return {
        "job": "pretrain_edm",
        "name": "tiny_edm_teacher",
        "data": {"folders": [str(world.data)], "global_batch": 8, "window": 16},
        "edm": {
            "classes": CLASSES,
            "width": 8,
            "multiples": [1, 2],
            "blocks": 1,
            "attention": [4],
            "iterations": 6,
            "steps": 3,
            "optim": {"lr": 1e-3, "warmup": 2},
        },
        "log": {"every": 1, "sample_every": 6},
        "checkpoint": {"every": 2},
        **changed,
    }
