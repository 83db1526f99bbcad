"""``stack evaluate``: teacher and student, measured on the same captions and noise."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from stack.config.schema import DistillRecipe
from stack.data.batch import BatchLoader
from stack.data.stream import ShardStream
from stack.evaluate.diversity import mode_counts, total_variation
from stack.evaluate.features import (
    Judge,
    caption_accuracy,
    extract,
    hold_out,
    load_judge,
    save_judge,
    train_judge,
)
from stack.evaluate.frechet import Moments, frechet_distance
from stack.evaluate.latency import device_name
from stack.evaluate.precision_recall import precision_recall
from stack.sample.generate import TextToImage, generate
from stack.train.build_pictures import teacher_and_student
from stack.util.errors import UserError
from stack.util.files import write_json
from stack.util.progress import progress

_HELD_OUT = 0.2
"""Share of the scans that the judge is tested on."""
_ROWS = (
    ("nfe", "network evaluations", "{:d}"),
    ("frechet_distance", "Frechet distance", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("precision", "precision", "{:.3f}"),
    ("caption_accuracy", "caption accuracy", "{:.4f}"),
    ("mode_tv", "total variation of modes", "{:.4f}"),
    ("images_per_second", "images per second", "{:.1f}"),
)


@dataclass(frozen=True)
class Labelled:
    """Real pictures with their attributes.

    Args:
        images: uint8 (N, 3, H, W). captions: N. labels: attribute to int64 (N,), indices into
            names[attribute]. stated: attribute to bool (N,), whether the caption gives it.
        groups: int64 (N,), pictures of one origin.
    """

    images: Tensor
    captions: list[str]
    labels: dict[str, Tensor]
    names: dict[str, list[str]]
    stated: dict[str, Tensor]
    groups: Tensor


def evaluate(
    run: Path, *, samples: int | None = None, seed: int = 0, json_file: Path | None = None
) -> dict[str, Any]:
    """Measure a run, print the table and write RUN/evaluation.json."""
    recipe, teacher, student = teacher_and_student(run)
    data = read_labelled(recipe)
    judge = _judge(recipe, data)
    wanted = samples or recipe.evaluation.samples
    rows = choose_prompts(data, wanted, recipe.evaluation.ambiguous, seed)
    real = extract(judge, data.images)
    result: dict[str, Any] = {
        name: _measure(name, model, judge, data, real, rows, seed, recipe.evaluation.batch)
        for name, model in (("teacher", teacher), ("student", student))
    }
    rates = [result[name]["images_per_second"] for name in ("student", "teacher")]
    half = hold_out(data.groups, 0.5, seed)
    result |= {
        "samples": len(rows),
        "seed": seed,
        "speedup": rates[0] / rates[1],
        "real_halves_frechet_distance": _distance(real[half], real[~half]),
        "judge": {"accuracy": judge.accuracy, "fingerprint": judge.fingerprint},
        "teacher_sampler": f"DDIM, {teacher.steps} steps, guidance {teacher.guidance:g}",
        "device": device_name(next(student.denoiser.parameters()).device),
    }
    write_json(run / "evaluation.json", result)
    if json_file:
        write_json(json_file, result)
    _print(run, result)
    return result


def read_labelled(recipe: DistillRecipe) -> Labelled:
    """All pictures and attributes of the recipe's data, each once.

    Raises:
        UserError: the shards have no pictures, captions or attributes.
    """
    assert recipe.data
    probe = ShardStream(recipe.data.folders, global_batch=1, lanes=1, seed=0, window=1)
    size = max(d for d in range(1, 257) if probe.steps_per_epoch % d == 0)
    stream = ShardStream(recipe.data.folders, global_batch=size, lanes=1, seed=0, window=1)
    loader = iter(BatchLoader(stream, ("image", "text", "json")))
    batches = [next(loader) for _ in range(stream.steps_per_epoch)]
    notes = [note for batch in batches for note in batch["json"]]
    attributes = sorted({name for note in notes for name in note.get("states", ())})
    if not attributes:
        raise UserError(f"{recipe.data.folders[0]}: json.states: no attributes to judge by")
    names = {name: sorted({note[name] for note in notes}) for name in attributes}
    return Labelled(
        images=torch.cat([batch["image"] for batch in batches]),
        captions=[text for batch in batches for text in batch["text"]],
        labels={
            name: torch.tensor([values.index(note[name]) for note in notes])
            for name, values in names.items()
        },
        names=names,
        stated={
            name: torch.tensor([name in note["states"] for note in notes]) for name in attributes
        },
        groups=torch.tensor([note["scan"] for note in notes]),
    )


def choose_prompts(data: Labelled, samples: int, ambiguous: int, seed: int) -> Tensor:
    """Rows whose captions are the prompts: ``ambiguous`` that leave the most varied attribute
    open, the others with every attribute stated; int64 (samples,)."""
    order = torch.randperm(len(data.captions), generator=torch.Generator().manual_seed(seed))
    whole = torch.stack(list(data.stated.values())).all(0)
    others = data.stated[_open_attribute(data)].logical_not()
    for name, stated in data.stated.items():
        others &= stated | torch.tensor(name == _open_attribute(data))
    wanted = {"open": (others, min(ambiguous, samples)), "whole": (whole, max(0, samples - ambiguous))}
    chosen = []
    for mask, count in wanted.values():
        rows = order[mask[order]]
        chosen.append(rows.repeat(-(-count // max(1, len(rows))))[:count])
    return torch.cat(chosen)


def _open_attribute(data: Labelled) -> str:
    """The attribute with the most values: the modes a vague caption should cover."""
    return max(data.names, key=lambda name: len(data.names[name]))


def _measure(
    name: str,
    model: TextToImage,
    judge: Judge,
    data: Labelled,
    real: Tensor,
    rows: Tensor,
    seed: int,
    batch: int,
) -> dict[str, Any]:
    """Every figure of one model."""
    captions = [data.captions[row] for row in rows.tolist()]
    marks = [time.perf_counter()]
    with progress(f"evaluate {name}", total=len(captions)) as bar:

        def on_batch(count: int) -> None:
            marks.append(time.perf_counter())
            bar.advance(count)

        images = generate(model, captions, seed=seed, batch=batch, on_batch=on_batch)
    seconds = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    features = extract(judge, images)
    predicted = {name: logits.argmax(1) for name, logits in judge.logits(features).items()}
    whole = torch.stack([stated[rows] for stated in data.stated.values()]).all(0)
    attribute = _open_attribute(data)
    modes = len(data.names[attribute])
    vague = ~data.stated[attribute][rows]
    quality = precision_recall(real, features)
    figures = {
        "nfe": model.nfe,
        "frechet_distance": _distance(real, features),
        "recall": quality.recall,
        "precision": quality.precision,
        "images_per_second": min(batch, len(captions)) / median(seconds),
    }
    if whole.any():
        figures["caption_accuracy"] = caption_accuracy(
            {key: value[whole] for key, value in predicted.items()},
            {key: value[rows][whole] for key, value in data.labels.items()},
        )
    if vague.any():
        figures["mode_tv"] = total_variation(
            mode_counts(predicted[attribute][vague], modes),
            mode_counts(data.labels[attribute], modes),
        )
    return figures


def _distance(a: Tensor, b: Tensor) -> float:
    moments = [Moments(a.shape[1]).update(features) for features in (a, b)]
    return frechet_distance(*moments)


def _judge(recipe: DistillRecipe, data: Labelled) -> Judge:
    """The classifier file the recipe names, trained first if it is missing."""
    path = Path(recipe.evaluation.judge or Path(recipe.out).parent / "judge.safetensors")
    if path.exists():
        return load_judge(path)
    print(f"training the judge of pictures, {path}")
    judge, _ = train_judge(
        data.images,
        data.labels,
        data.names,
        seed=0,
        held_out=hold_out(data.groups, _HELD_OUT, seed=0),
    )
    save_judge(judge, path)
    return judge


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
    console = Console()
    console.print(table)
    console.print(
        f"speedup {result['speedup']:.1f}x; Frechet distance between two halves of the real data "
        f"{result['real_halves_frechet_distance']:.3f}; judge on held-out scans "
        + ", ".join(f"{k} {v:.4f}" for k, v in result["judge"]["accuracy"].items())
    )
