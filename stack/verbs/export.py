"""``stack export``: the student as a diffusers pipeline folder."""

from __future__ import annotations

from pathlib import Path

from stack.checkpoint import folders
from stack.sample.export import save_pipeline
from stack.train.build_pictures import run_recipe, student_unet
from stack.util.errors import UserError


def export(run: Path, *, out: Path | None, fp16: bool, average: str | None) -> Path:
    """Write the student's pipeline folder and say how to use it.

    Args:
        run: the run's folder, or one of its checkpoints. fp16, average: what is written.

    Raises:
        UserError: ``out`` holds something; only an export in the run folder is replaced.
    """
    if out and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"command line: --out: {out} exists already; remove it or name another")
    recipe, teacher = run_recipe(run)
    unet = student_unet(run, recipe, teacher, average)
    to = out or (folders.run_of(run) if folders.is_step(run) else run) / "student"
    folder = save_pipeline(unet.half() if fp16 else unet, teacher, to)
    print(
        f"{folder}: load it with StableDiffusionPipeline.from_pretrained and sample with "
        "num_inference_steps=1, guidance_scale=1"
    )
    return folder
