"""``stack figures``: the paper's figures from run folders, or from toy runs made on the spot."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stack.config.schema import Mixture2DTeacher
from stack.nets.toy import ring
from stack.report.compare import given_once
from stack.report.figures import scatter_modes
from stack.report.figures_grids import picture_grid
from stack.report.figures_runs import Overlay, overlaid, score_gap_map, sorted_samples
from stack.report.figures_theory import divergence_curves, variance_of_h
from stack.sample.generate import Sampler, generate
from stack.train.build_pictures import conditions_of, teacher_and_student
from stack.util.errors import UserError
from stack.verbs.figures_runs import Run, alike, by_name, labelled, plane_of, samples_of, seeded
from stack.verbs.figures_toys import toy_run

_STAGES = 4
"""Iterations of a row of Fig. 8."""
_SEEDS = 8
"""Pictures of a row of Fig. 6b."""
_BATCH = 10
_TOY_SEEDS = ("", "_seed1", "_seed2")
"""Ends of the names of toys that differ in their seed alone."""
_FEATURES = {
    "fake_joint": "(a) fake score’s features, both trained",
    "teacher": "(b) teacher’s features, head trained",
    "fake": "(c) fake score’s features, head trained",
}
_STEADINESS = (
    Overlay("loss/gap", "Loss of the student", log=True),
    Overlay("grad/student", "Norm of its gradient", log=True),
    Overlay("h/variance", "Normalised variance of h", log=True),
)
_QUALITY = (Overlay("quick/frechet_distance", "Fréchet distance", log=True, exact=True),)
_DYNAMICS = (
    *_QUALITY,
    Overlay("gap/mean", "Mean gap of teacher and fake score"),
    Overlay("h/variance", "Normalised variance of h", log=True),
)
GRIDS = ("fig6a", *(f"fig{number}" for number in range(10, 19)))
"""What the paper calls its sample grids, each of them one of a run here."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for besides the figures' names."""

    runs: Sequence[Run]
    out: Path
    prompts: Sequence[str]
    seed: int
    samples: int
    toys: Sequence[str]

    def toy(self, *names: str) -> list[Run]:
        """Toy runs, below the figures."""
        return [toy_run(name, self.out / "toy", tuple(self.toys)) for name in names]

    @property
    def pictures(self) -> list[Run]:
        return [run for run in self.runs if not run.flat]


Draw = Callable[[Wish], list[Path]]


def figures(wish: Wish, only: Sequence[str]) -> None:
    """Draw the figures of those names, or all that can be drawn, and print what was written.

    Raises:
        UserError: a name is unknown; a run is given twice; or what was asked for needs runs that
            are not there.
    """
    given_once([run.folder for run in wish.runs])
    asked = list(dict.fromkeys("grids" if name in GRIDS else name for name in only))
    for name in asked:
        if name not in FIGURES:
            raise UserError(f"command line: --only: {name}: not one of {', '.join(FIGURES)}")
    for name in asked or FIGURES:
        if name in ("grids", "fig6b") and len(wish.pictures) < 1 + (name == "fig6b"):
            need = "two runs" if name == "fig6b" else "a run"
            told = f"{name}: needs {need} with pictures, of stack distill; name the folder"
            if asked:
                raise UserError(f"command line: --only: {told}")
            print(f"not drawn: {told}")
            continue
        for path in FIGURES[name](wish):
            print(path)


def _fig2(wish: Wish) -> list[Path]:
    run = next((run for run in wish.runs if run.flat), None) or wish.toy("toy_fkl")[0]
    return score_gap_map(wish.out / "fig2", plane_of(run))


def _fig4b(wish: Wish) -> list[Path]:
    def normalised(run: Run) -> str:
        ratio = run.recipe.ratio
        return {
            (True, True): "with both normalisations",
            (True, False): "of r alone",
            (False, True): "of h alone",
            (False, False): "without normalisation",
        }[ratio.normalize_r, ratio.normalize_h]

    runs = [run for run in wish.runs if run.recipe.divergence == "forward_kl"]
    toys = [f"{toy}{seed}" for toy in ("toy_fkl", "toy_fkl_plain") for seed in _TOY_SEEDS]
    chosen = alike(runs, normalised) or wish.toy(*toys)
    return _overlaid(wish.out / "fig4b", _STEADINESS, chosen, normalised)


def _fig5(wish: Wish) -> list[Path]:
    runs = wish.runs or wish.toy("toy_fkl", "toy_js")
    named = labelled(runs, lambda run: f"{run.recipe.name}, {run.divergence}")
    found = {name: samples_of(run, wish.samples) for name, run in named.items()}
    return sorted_samples(wish.out / "fig5", found)


def _fig7(wish: Wish) -> list[Path]:
    scored = [run for run in wish.runs if run.history.curve("quick/frechet_distance")]
    chosen = alike(scored, lambda run: run.recipe.gan.features)
    chosen = chosen or wish.toy("toy_fkl_fake_joint", "toy_fkl", "toy_fkl_fake")
    return _overlaid(
        wish.out / "fig7", _QUALITY, chosen, lambda run: _FEATURES[run.recipe.gan.features]
    )


def _fig8(wish: Wish) -> list[Path]:
    flat = [run for run in wish.runs if run.flat]
    chosen = alike(flat, lambda run: run.divergence) or wish.toy("toy_fkl", "toy_rkl")
    given = chosen[0].recipe.teacher
    assert isinstance(given, Mixture2DTeacher)
    rows: dict[str, dict[int, np.ndarray]] = {}
    for name, run in labelled(chosen, lambda run: run.divergence).items():
        real, stages = run.stages()
        steps = sorted(stages)
        kept = [steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(_STAGES, len(steps)))]
        rows[name] = {step: stages[step] for step in kept}
    centres = ring(given.modes, given.radius).numpy()
    return scatter_modes(wish.out / "fig8", real, rows, centres, reach=3 * given.std)


def _fig9(wish: Wish) -> list[Path]:
    chosen = alike(wish.runs, lambda run: run.divergence) or wish.toy("toy_js", "toy_fkl")
    return _overlaid(wish.out / "fig9", _DYNAMICS, chosen, lambda run: run.divergence)


def _overlaid(
    out: Path, panels: Sequence[Overlay], runs: Sequence[Run], label: Callable[[Run], str]
) -> list[Path]:
    lines = seeded(runs, label)
    logs = {line: {name: run.history for name, run in runs.items()} for line, runs in lines.items()}
    return overlaid(out, panels, logs)


def _grids(wish: Wish) -> list[Path]:
    """Teacher above student, a figure for every run."""
    paths = []
    for name, run in _file_names(by_name(wish.pictures)).items():
        recipe, teacher, student = teacher_and_student(run.folder)
        prompts = list(wish.prompts or conditions_of(recipe))
        rows = {
            f"teacher,\n{teacher.nfe} NFE": _pictures(teacher, prompts, wish.seed),
            f"{run.divergence},\n{student.nfe} NFE": _pictures(student, prompts, wish.seed),
        }
        paths += picture_grid(
            wish.out / f"grid_{name}",
            rows,
            [_title(prompt) for prompt in prompts],
            note=f"{recipe.name}: same prompt and noise in a column, seed {wish.seed}",
            details=_details(wish, run=str(run.folder)),
        )
    return paths


def _file_names(runs: Mapping[str, Run]) -> dict[str, Run]:
    """Runs by what may stand in a file's name: letters, digits, _ and -. A dot may not, for what
    follows it would be taken for a suffix and replaced."""
    names = [re.sub(r"[^\w-]+", "-", name).strip("-") for name in runs]
    if len({*names}) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names, 1)]
    return dict(zip(names, runs.values(), strict=True))


def _fig6b(wish: Wish) -> list[Path]:
    """The students of several runs on one prompt, a column per noise."""
    rows, prompt = {}, next(iter(wish.prompts), "")
    for name, run in labelled(wish.pictures, lambda run: run.divergence).items():
        recipe, _, student = teacher_and_student(run.folder)
        prompt = prompt or conditions_of(recipe)[0]
        rows[name.replace(" (", "\n(")] = _pictures(student, [prompt] * _SEEDS, wish.seed)
    titles = [f"noise {number}" for number in range(1, _SEEDS + 1)]
    note = f"“{_title(prompt)}”, same noise in a column, seed {wish.seed}"
    details = _details(wish, prompt=prompt)
    return picture_grid(wish.out / "fig6b", rows, titles, note=note, details=details)


def _pictures(model: Sampler, prompts: list[str], seed: int) -> np.ndarray:
    """(N, H, W, 3) uint8."""
    images: torch.Tensor = generate(model, prompts, seed=seed, batch=_BATCH)
    return images.permute(0, 2, 3, 1).numpy()


def _title(condition: str) -> str:
    """A prompt, or what a class number stands for."""
    return f"class {condition}" if condition.isdecimal() else condition


def _details(wish: Wish, **more: Any) -> dict[str, Any]:
    return {"seed": wish.seed, **more}


FIGURES: dict[str, Draw] = {
    "fig2": _fig2,
    "fig3": lambda wish: divergence_curves(wish.out / "fig3"),
    "fig4a": lambda wish: variance_of_h(wish.out / "fig4a"),
    "fig4b": _fig4b,
    "fig5": _fig5,
    "fig6b": _fig6b,
    "fig7": _fig7,
    "fig8": _fig8,
    "fig9": _fig9,
    "grids": _grids,
}
"""By name; fig6a and fig10 to fig18 are grids."""
