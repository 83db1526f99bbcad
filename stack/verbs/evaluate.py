"""``stack evaluate``: teacher and student, measured on the same captions and noise."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from stack.evaluate.attributes import (
    choose_prompts,
    distance,
    figures,
    read_labelled,
    shared_judge,
)
from stack.evaluate.features import extract, hold_out, load_judge
from stack.evaluate.latency import device_name
from stack.parallel.collectives import Ranks, ranks_of
from stack.sample.generate import TextToImage, generate
from stack.train.build import cache_of
from stack.train.build_pictures import teacher_and_student
from stack.util.errors import UserError
from stack.util.files import write_json
from stack.util.progress import progress

_FEWEST = 10
_ROWS = (
    ("nfe", "network evaluations", "{:d}"),
    ("frechet_distance", "Frechet distance", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("precision", "precision", "{:.3f}"),
    ("caption_accuracy", "caption accuracy", "{:.4f}"),
    ("mode_tv", "total variation of modes", "{:.4f}"),
    ("images_per_second", "images per second", "{:.1f}"),
)


def evaluate(
    run: Path, *, samples: int | None = None, seed: int = 0, json_file: Path | None = None
) -> None:
    """Measure a run, print the table and write RUN/evaluation.json."""
    recipe, teacher, student = teacher_and_student(run)
    assert recipe.data
    with ranks_of(recipe.parallel.backend, timeout=recipe.parallel.timeout) as ranks:
        data = read_labelled(recipe.data.folders, cache_of(recipe.data))
        wanted = recipe.evaluation
        samples = samples or wanted.samples
        if samples < _FEWEST:
            raise UserError(f"--samples: {samples}: at least {_FEWEST}, for recall's neighbours")
        vague = wanted.ambiguous * samples // wanted.samples
        rows = choose_prompts(data, samples, vague, seed)
        captions = [data.captions[row] for row in rows.tolist()]
        made = {
            name: _pictures(name, model, captions, seed, wanted.batch, ranks)
            for name, model in (("teacher", teacher), ("student", student))
        }
        if not ranks.first:
            return
        judge = load_judge(wanted.judge) if wanted.judge else shared_judge(run.parent, data)
        real = extract(judge, data.images)
        result: dict[str, Any] = {
            name: {"nfe": model.nfe, "images_per_second": made[name][1]}
            | figures(judge, data, real, rows, made[name][0])
            for name, model in (("teacher", teacher), ("student", student))
        }
        half = hold_out(data.groups, 0.5, seed)
        result |= {
            "samples": len(rows),
            "seed": seed,
            "speedup": made["student"][1] / made["teacher"][1],
            "real_halves_frechet_distance": distance(real[half], real[~half]),
            "judge": {"accuracy": judge.accuracy, "fingerprint": judge.fingerprint},
            "teacher_sampler": f"DDIM, {teacher.steps} steps, guidance {teacher.guidance:g}",
            "device": device_name(next(student.denoiser.parameters()).device),
            "processes": ranks.world_size,
        }
    for file in (run / "evaluation.json", json_file):
        if file:
            write_json(file, result)
    _print(run, result)


def _pictures(
    name: str, model: TextToImage, captions: list[str], seed: int, batch: int, ranks: Ranks
) -> tuple[Tensor, float]:
    """All pictures of a model, each rank's block of them joined, and images per second: the
    ranks' rates by their median batch, text encoder and autoencoder included, added up."""
    block = -(-len(captions) // ranks.world_size)
    first = ranks.rank * block
    own = captions[first : first + block]
    start, rates = time.perf_counter(), []
    with progress(f"evaluate {name}", total=len(own)) as bar:

        def on_batch(count: int) -> None:
            nonlocal start
            start, before = time.perf_counter(), start
            rates.append(count / (start - before))
            bar.advance(count)

        images = generate(model, own, seed=seed, batch=batch, first=first, on_batch=on_batch)
    parts = ranks.gather((images, median(rates)))
    return torch.cat([part for part, _ in parts]), sum(rate for _, rate in parts)


def _print(run: Path, result: dict[str, Any]) -> None:
    table = Table(title=f"{run}: {result['samples']} samples, seed {result['seed']}")
    table.add_column("")
    table.add_column("teacher", justify="right")
    table.add_column("student", justify="right")
    for key, title, form in _ROWS:
        cells = [
            form.format(result[name][key]) if key in result[name] else "-"
            for name in ("teacher", "student")
        ]
        table.add_row(title, *cells)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"speedup {result['speedup']:.1f}x; Frechet distance between two halves of the real data "
        f"{result['real_halves_frechet_distance']:.3f}; judge on held-out scans "
        + ", ".join(f"{k} {v:.4f}" for k, v in result["judge"]["accuracy"].items())
    )
