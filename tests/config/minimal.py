"""The least recipe of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ADAM: dict[str, Any] = {"lr": 1e-3}
DISTILL: dict[str, Any] = {
    "name": "x",
    "teacher": {"path": "teacher"},
    "data": {"folders": ["shards"], "global_batch": 8},
    "divergence": "jensen_shannon",
    "iterations": 10,
    "optim": {"student": ADAM, "fake": ADAM, "heads": ADAM},
}
MIXTURE = {key: value for key, value in DISTILL.items() if key not in ("data", "teacher")}
MIXTURE |= {"global_batch": 8, "teacher": {"kind": "mixture2d"}}
PRETRAIN: dict[str, Any] = {
    "job": "pretrain",
    "name": "x",
    "data": {"folders": ["shards"], "global_batch": 8},
    "vae": {"channels": [8, 8], "iterations": 1, "batch": 8, "optim": ADAM},
    "text": {},
    "unet": {
        "channels": [8],
        "attention": [True],
        "iterations": 1,
        "batch": 8,
        "optim": ADAM,
    },
}
EDM = DISTILL | {"teacher": {"kind": "edm", "path": "teacher"}}
PRETRAIN_EDM: dict[str, Any] = {
    "job": "pretrain_edm",
    "name": "x",
    "data": {"folders": ["shards"], "global_batch": 8},
    "edm": {"iterations": 1, "optim": ADAM},
}
WHOLE = {
    "distill": DISTILL,
    "mixture": MIXTURE,
    "edm": EDM,
    "pretrain": PRETRAIN,
    "pretrain_edm": PRETRAIN_EDM,
}


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return path
