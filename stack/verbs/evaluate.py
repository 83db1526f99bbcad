"""``stack evaluate``: teacher and student, measured on the same captions and noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from stack.config.schema import SDTeacher
from stack.evaluate.attributes import (
    choose_prompts,
    distance,
    figures,
    read_labelled,
    shared_judge,
)
from stack.evaluate.bootstrap import FEW
from stack.evaluate.features import extract, hold_out, load_judge
from stack.evaluate.latency import device_name
from stack.parallel.collectives import Ranks
from stack.sample.generate import generate
from stack.train.build import cache_of
from stack.train.build_models import Kind, Model, models_of_run
from stack.util.errors import UserError
from stack.util.files import write_json
from stack.util.progress import progress
from stack.verbs.evaluate_suite import Options

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


def evaluate(options: Options, ranks: Ranks) -> None:
    """The suite digits: measure a run, print the table and write RUN/evaluation.json."""
    run, seed = Path(options.target), options.seed
    kinds = cast(Sequence[Kind], options.teachers)
    recipe, models = models_of_run(run, kinds, steps=options.steps, guidance=options.guidance)
    if not isinstance(recipe.teacher, SDTeacher):
        raise UserError(
            f"--suite: digits: {run} draws classes, and not captions; take cifar10, imagenet64 or "
            "the file of a suite"
        )
    assert recipe.data
    data = read_labelled(recipe.data.folders, cache_of(recipe.data))
    wanted = recipe.evaluation
    samples = options.subset or wanted.samples
    if samples < _FEWEST:
        raise UserError(f"--samples: {samples}: at least {_FEWEST}, for recall's neighbours")
    vague = wanted.ambiguous * samples // wanted.samples
    rows = choose_prompts(data, samples, vague, seed)
    captions = [data.captions[row] for row in rows.tolist()]
    batch = options.batch or wanted.batch
    made = {model.name: _pictures(model, captions, seed, batch, ranks) for model in models}
    if not ranks.first:
        return
    judge = load_judge(wanted.judge) if wanted.judge else shared_judge(run.parent, data)
    real = extract(judge, data.images)
    result: dict[str, Any] = {
        model.name: {"nfe": model.sampler.nfe, "images_per_second": made[model.name][1]}
        | figures(judge, data, real, rows, made[model.name][0])
        for model in models
    }
    half = hold_out(data.groups, 0.5, seed)
    result |= {
        "samples": len(rows),
        "seed": seed,
        "real_halves_frechet_distance": distance(real[half], real[~half]),
        "judge": {"accuracy": judge.accuracy, "fingerprint": judge.fingerprint},
        "device": device_name(models[-1].sampler.device),
        "processes": ranks.world_size,
    }
    if "teacher" in result:
        result["speedup"] = made["student"][1] / made["teacher"][1]
        result["teacher_sampler"] = models[0].told
    for file in (run / "evaluation.json", options.json_file):
        if file:
            write_json(file, result)
    _print(run, [model.name for model in models], result)


def _pictures(
    model: Model, captions: list[str], seed: int, batch: int, ranks: Ranks
) -> tuple[Tensor, float]:
    """All pictures of a model, each rank's block of them joined, and images per second: the
    ranks' rates by their median batch, text encoder and autoencoder included, added up."""
    block = -(-len(captions) // ranks.world_size)
    first = ranks.rank * block
    own = captions[first : first + block]
    indices = torch.arange(first, first + len(own))
    start, rates = time.perf_counter(), []
    with progress(f"evaluate {model.name}", total=len(own)) as bar:

        def on_batch(count: int) -> None:
            nonlocal start
            start, before = time.perf_counter(), start
            rates.append(count / (start - before))
            bar.advance(count)

        images = generate(
            model.sampler, own, seed=seed, batch=batch, indices=indices, on_batch=on_batch
        )
    parts = ranks.gather((images, median(rates)))
    return torch.cat([part for part, _ in parts]), sum(rate for _, rate in parts)


def _print(run: Path, names: Sequence[str], result: dict[str, Any]) -> None:
    table = Table(title=f"{run}: {result['samples']} samples, seed {result['seed']}")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for key, title, form in _ROWS:
        table.add_row(title, *(_cell(result[name], key, form) for name in names))
    console = Console(highlight=False)
    console.print(table)
    told = f"speedup {result['speedup']:.1f}x; " if "speedup" in result else ""
    console.print(
        f"{told}Frechet distance between two halves of the real data "
        f"{result['real_halves_frechet_distance']:.3f}; judge on held-out scans "
        + ", ".join(f"{k} {v:.4f}" for k, v in result["judge"]["accuracy"].items())
    )
    if result["samples"] < FEW:
        console.print(
            f"{result['samples']} samples, fewer than {FEW:,}: Frechet distances compare only "
            "with those of as many"
        )


def _cell(row: dict[str, Any], key: str, form: str) -> str:
    """A figure and, where it has one, half the width of its 95% interval."""
    if key not in row:
        return "-"
    interval = row["intervals"].get(key)
    reach = f" \u00b1 {(interval['high'] - interval['low']) / 2:.2g}" if interval else ""
    return form.format(row[key]) + reach
