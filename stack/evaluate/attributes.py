"""Pictures judged by the attributes their captions name: prompts, and figures of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stack.data.batch import BatchLoader
from stack.data.cache import ShardCache
from stack.data.stream import ShardStream
from stack.evaluate.bootstrap import frechet_estimate, share_estimate, variation_estimate
from stack.evaluate.diversity import mode_counts
from stack.evaluate.features import (
    Judge,
    caption_accuracy,
    extract,
    fingerprint,
    hold_out,
    load_judge,
    save_judge,
    train_judge,
)
from stack.evaluate.frechet import Moments, frechet_distance
from stack.evaluate.precision_recall import precision_recall
from stack.util.errors import UserError

_BATCH = 256
_HELD_OUT = 0.2
"""Share of the scans that the judge is tested on."""


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

    @property
    def modes(self) -> str:
        """The attribute with the most values, whose modes a vague caption should cover."""
        return max(self.names, key=lambda name: len(self.names[name]))

    @property
    def whole(self) -> Tensor:
        """bool (N,), whether the caption gives every attribute."""
        return torch.stack(list(self.stated.values())).all(0)

    @property
    def vague(self) -> Tensor:
        """bool (N,), whether the caption gives every attribute but :attr:`modes`."""
        others = [stated for name, stated in self.stated.items() if name != self.modes]
        return torch.stack([~self.stated[self.modes], *others]).all(0)


def read_labelled(folders: Sequence[str], cache: ShardCache | None = None) -> Labelled:
    """All pictures of the folders with captions and attributes, each once.

    Raises:
        UserError: the shards have no pictures, captions or attributes.
    """
    options: dict[str, Any] = {"lanes": 1, "seed": 0, "window": 1, "cache": cache}
    whole = ShardStream(folders, global_batch=1, **options).steps_per_epoch
    size = max(divisor for divisor in range(1, _BATCH + 1) if whole % divisor == 0)
    stream = ShardStream(folders, global_batch=size, **options)
    loader = iter(BatchLoader(stream, ("image", "text", "json")))
    batches = [next(loader) for _ in range(stream.steps_per_epoch)]
    notes = [note for batch in batches for note in batch["json"]]
    attributes = sorted({name for note in notes for name in note.get("states", ())})
    if not attributes:
        raise UserError(f"{folders[0]}: json.states: no attributes to judge pictures by")
    names = {name: sorted({note[name] for note in notes}) for name in attributes}
    places = {name: {value: i for i, value in enumerate(names[name])} for name in attributes}
    return Labelled(
        images=torch.cat([batch["image"] for batch in batches]),
        captions=[text for batch in batches for text in batch["text"]],
        labels={a: torch.tensor([places[a][note[a]] for note in notes]) for a in attributes},
        names=names,
        stated={a: torch.tensor([a in note["states"] for note in notes]) for a in attributes},
        groups=torch.tensor([note["scan"] for note in notes]),
    )


def shared_judge(folder: Path, data: Labelled) -> Judge:
    """The classifier that the runs of a folder share; trained if none of these data is there."""
    path = folder / "judge.safetensors"
    if path.exists():
        judge = load_judge(path)
        if judge.trained_on == fingerprint(data.images, data.labels):
            return judge
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


def choose_prompts(data: Labelled, samples: int, vague: int, seed: int) -> Tensor:
    """Rows whose captions are the prompts, int64 (samples,): ``vague`` ones that leave the modes
    open, the others with every attribute given; in random order, repeated where too few.

    Raises:
        UserError: the data have no such captions.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.captions), generator=generator)
    vague = min(vague, samples)
    chosen = []
    for mask, count in ((data.vague, vague), (data.whole, samples - vague)):
        rows = order[mask[order]]
        if count and not len(rows):
            raise UserError(f"data: no captions that leave {data.modes} open, or none that do not")
        chosen.append(rows.repeat(-(-count // max(1, len(rows))))[:count])
    rows = torch.cat(chosen)
    return rows[torch.randperm(len(rows), generator=generator)]


def figures(
    judge: Judge, data: Labelled, real: Tensor, rows: Tensor, images: Tensor
) -> dict[str, Any]:
    """Every figure of a model's pictures, and their intervals.

    Args:
        real: (N, D) the judge's features of the data. rows: (M,) int64, the data's rows whose
            captions were the prompts. images: uint8 (M, 3, H, W).
    """
    features = extract(judge, images)
    predicted = {name: logits.argmax(1) for name, logits in judge.logits(features).items()}
    quality = precision_recall(real, features)
    found = {
        "frechet_distance": frechet_estimate(features, Moments(real.shape[1]).update(real)),
        "recall": share_estimate(quality.recall, len(real)),
        "precision": share_estimate(quality.precision, len(features)),
    }
    whole, vague = data.whole[rows], data.vague[rows]
    if whole.any():
        wanted = {name: values[rows][whole] for name, values in data.labels.items()}
        accuracy = caption_accuracy(
            {name: values[whole] for name, values in predicted.items()}, wanted
        )
        found["caption_accuracy"] = share_estimate(accuracy, int(whole.sum()))
    if vague.any():
        modes = len(data.names[data.modes])
        wanted_counts = mode_counts(data.labels[data.modes], modes)
        found["mode_tv"] = variation_estimate(predicted[data.modes][vague], wanted_counts)
    return {
        **{name: estimate.value for name, estimate in found.items()},
        "intervals": {name: estimate.as_json() for name, estimate in found.items()},
    }


def distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between features (N, D) and (M, D)."""
    return frechet_distance(Moments(a.shape[1]).update(a), Moments(b.shape[1]).update(b))
