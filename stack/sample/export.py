"""A student as a diffusers pipeline folder that plain diffusers samples in one step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from stack.nets.weights import plain_names
from stack.util.files import read_json, write_json

ONE_STEP = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 0}
"""DDIMScheduler settings with which one step from t = 999 returns x0."""


_KEPT = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("rescale_betas_zero_snr", "prediction_type"),
)
"""The teacher's noise schedule."""


def save_pipeline(unet: UNet2DConditionModel, teacher: Path, out: Path) -> Path:
    """Write a student's pipeline folder; the teacher's other parts are copied file by file.

    Args:
        unet: the student. teacher: the pipeline folder it was distilled from.
    """
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    index = read_json(teacher / "model_index.json")
    for part in sorted(teacher.iterdir()):
        if part.is_dir() and part.name not in ("unet", "scheduler"):
            shutil.copytree(part, staging / part.name)
            plain_names(staging / part.name)
    name_text_keys(staging)
    unet.save_pretrained(staging / "unet")
    scheduler = read_json(teacher / "scheduler" / "scheduler_config.json")
    config = {"_class_name": "DDIMScheduler", "clip_sample": False}
    config |= {key: scheduler[key] for key in _KEPT if key in scheduler} | ONE_STEP
    write_json(staging / "scheduler" / "scheduler_config.json", config)
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    for name, value in index.items():
        # Such as a safety checker, which stack fetch leaves on the hub.
        if isinstance(value, list) and not (staging / name).is_dir():
            index[name] = [None, None]
    (staging / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)
    return out


def name_text_keys(folder: Path) -> None:
    """Give the text encoder's weights their ``text_model.`` prefix, without which transformers
    before 5 takes none of them; 5 leaves it out, and reads both."""
    for file in (folder / "text_encoder").glob("model*.safetensors"):
        weights = load_file(file)
        named = {
            name
            if name.startswith(("text_model.", "text_projection."))
            else f"text_model.{name}": w
            for name, w in weights.items()
        }
        if named.keys() != weights.keys():
            save_file(named, file, metadata={"format": "pt"})
