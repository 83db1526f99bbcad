"""Pictures judged by the attributes their captions name: what is asked, and what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stack.data.cache import ShardCache
from stack.evaluate.diversity import mode_counts
from stack.evaluate.features import (
    Judge,
    extract,
    fingerprint,
    hold_out,
    load_judge,
    save_judge,
    train_judge,
)
from stack.evaluate.frechet import Moments, frechet_distance
from stack.evaluate.intervals import (
    Estimate,
    mean_estimate,
    variation_estimate,
)
from stack.evaluate.reference import Reference
from stack.evaluate.shards import read_all
from stack.util.errors import UserError

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
    batches = read_all(folders, ("image", "text", "json"), cache=cache)
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


@dataclass(frozen=True)
class Asked:
    """What prompts ask for, of the attributes that a judge names.

    Args:
        labels: attribute to int64 (M,), indices into the judge's names. whole: bool (M,), whether
            the prompt gives all of them; vague: whether it gives all but ``modes``.
        counts: how often the real pictures have each of the modes.
    """

    labels: dict[str, Tensor]
    whole: Tensor
    vague: Tensor
    modes: str
    counts: Tensor

    def figures(self, answers: Tensor) -> dict[str, Estimate]:
        """How often all is as asked, and how the modes are spread where they are left open.

        Args:
            answers: int64 (M, per_prompt, attributes), as of :func:`judged`.
        """
        found = {}
        wanted = torch.stack(list(self.labels.values()), 1)[:, None]
        right = (answers == wanted).all(2).double().mean(1)
        if self.whole.any():
            found["caption_accuracy"] = mean_estimate(right[self.whole])
        if self.vague.any():
            drawn = answers[self.vague, :, list(self.labels).index(self.modes)]
            found["mode_tv"] = variation_estimate(drawn.flatten(), self.counts)
        return found


def asked(data: Labelled, judge: Judge, rows: Tensor) -> Asked:
    """What the captions of some rows of the data, int64 (M,), ask for.

    Raises:
        UserError: the judge names other attributes than the data.
    """
    if judge.names != data.names:
        told = ", ".join(judge.names)
        raise UserError(f"judge: of {told}: not of the attributes of the data; train it anew")
    counts = mode_counts(data.labels[data.modes], len(data.names[data.modes]))
    labels = {name: data.labels[name][rows] for name in judge.names}
    return Asked(labels, data.whole[rows], data.vague[rows], data.modes, counts)


def judged(judge: Judge, images: Tensor, batch: int) -> Tensor:
    """What a judge takes pictures for: int64 (B, attributes), in the order of its names."""
    logits = judge.logits(extract(judge, images, batch))
    return torch.stack([logits[name].argmax(1) for name in judge.names], 1)


def real_reference(judge: Judge, data: Labelled, source: str) -> Reference:
    """The data in the judge's features."""
    features = extract(judge, data.images)
    mean, covariance = Moments(judge.dim).update(features).finalize()
    facts = {
        "extractor": judge.name,
        "fingerprint": judge.fingerprint,
        "source": source,
        "source_fingerprint": fingerprint(data.images, data.labels),
        "resolution": None,
    }
    return Reference(mean, covariance, len(features), features, facts)


def halves_distance(judge: Judge, data: Labelled, seed: int) -> float:
    """Frechet distance between two halves of the data, of different origins each."""
    features, half = extract(judge, data.images), hold_out(data.groups, 0.5, seed)
    first, second = (Moments(judge.dim).update(features[some]) for some in (half, ~half))
    return frechet_distance(first, second)
