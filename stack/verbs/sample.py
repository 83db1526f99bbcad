"""``stack sample``: the teacher's pictures above the student's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stack.sample.generate import generate
from stack.sample.grid import save_grid
from stack.train.build_pictures import conditions_of, teacher_and_student
from stack.util.errors import UserError
from stack.util.files import write_json

_COLUMNS = 10


def sample(run: Path, *, prompts: Sequence[str] | None, seed: int, out: Path | None) -> Path:
    """Write a grid, same prompts and noise: a row of the teacher above one of the student."""
    if out and out.suffix != ".png":
        raise UserError(f"command line: --out: {out} does not end in .png")
    for path in (out, out.with_suffix(".json")) if out else ():
        if path.exists():
            raise UserError(f"command line: --out: {path} exists already; name another")
    recipe, teacher, student = teacher_and_student(run)
    captions = list(prompts or conditions_of(recipe))
    models = (teacher, student)
    above, below = (generate(model, captions, seed=seed, batch=_COLUMNS) for model in models)
    pairs = zip(above.split(_COLUMNS), below.split(_COLUMNS), strict=True)
    path = save_grid(out or run / "samples" / "grid.png", [row for pair in pairs for row in pair])
    write_json(path.with_suffix(".json"), {"prompts": captions, "seed": seed})
    print(path)
    return path
