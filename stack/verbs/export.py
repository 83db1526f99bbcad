"""``stack export``: the student as a diffusers pipeline folder, or an EDM network's."""

from __future__ import annotations

from pathlib import Path

from stack.train.build_pictures import save_student
from stack.util.errors import UserError


def export(run: Path, *, out: Path | None, fp16: bool, average: str | None) -> Path:
    """Write the student's folder and say how to use it.

    Args:
        run: the run's folder, or one of its checkpoints. fp16, average: what is written.

    Raises:
        UserError: ``out`` holds something; only an export in the run folder is replaced.
    """
    if out and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"command line: --out: {out} exists already; remove it or name another")
    folder, use = save_student(run, out, fp16=fp16, average=average)
    print(f"{folder}: {use}")
    return folder
