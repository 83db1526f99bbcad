"""What a metric looks at: feature extractors, and a small classifier trained on the real data.

Every distance in this room is taken between features. A `FeatureExtractor` is anything that turns
uint8 pictures into vectors; `Judge` is the one this project trains itself, for data sets too small
or too odd for a network trained on photographs. It also answers what a picture shows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stack.nets.fingerprint import weights_fingerprint
from stack.util.errors import UserError
from stack.util.files import write_atomic

_FORMAT = "stack-judge-2"  # The one entry of metadata: safetensors writes several in any order.
_BATCH = 64
_LEARNING_RATE = 4e-3


class FeatureExtractor(Protocol):
    """Pictures to vectors: uint8 (B, 3, H, W) to float32 (B, dim)."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def __call__(self, images: Tensor) -> Tensor: ...


def extract(extractor: FeatureExtractor, images: Tensor, batch_size: int = 500) -> Tensor:
    """Features of many pictures, uint8 (N, 3, H, W) to float32 (N, dim), a batch at a time."""
    return torch.cat([extractor(chunk) for chunk in images.split(batch_size)])


class Judge(nn.Module):
    """A small convolutional classifier with one linear head per attribute.

    The features are the 64 numbers the heads read, in units that give the training pictures a
    variance of one per number on average, so that distances taken by two judges compare. Batch
    normalisation makes a few hundred steps enough.

    Args:
        names: the values of each attribute, e.g. ``{"colour": ["red", ...]}``; predictions index
            these lists.
        size: height and width of the pictures, a multiple of 8.
        accuracy: share of held-out pictures answered rightly, per attribute.
        trained_on: SHA-256 of the pictures and labels it was trained on.
    """

    name = "judge"
    dim = 64
    unit: Tensor

    def __init__(
        self,
        names: Mapping[str, Sequence[str]],
        *,
        size: int = 32,
        accuracy: Mapping[str, float] | None = None,
        trained_on: str = "",
    ) -> None:
        super().__init__()
        self.names = {attribute: list(values) for attribute, values in names.items()}
        self.size = size
        self.accuracy = dict(accuracy or {})
        self.trained_on = trained_on
        widths = (3, 16, 32, 64)
        layers: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            layers += [
                nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outside),
                nn.SiLU(),
            ]
        flat = widths[-1] * (size // 8) ** 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, self.dim), nn.SiLU())
        self.register_buffer("unit", torch.ones(()))
        self.heads = nn.ModuleDict(
            {attribute: nn.Linear(self.dim, len(values)) for attribute, values in names.items()}
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, the unit included."""
        return weights_fingerprint(self)

    def forward(self, images: Tensor) -> Tensor:
        """Features float32 (B, 64) of pixels in [0, 255], of any dtype (B, 3, S, S)."""
        return self.body(images.float() / 127.5 - 1) / self.unit

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """What the heads say of features (B, 64): per attribute (B, values)."""
        return {attribute: head(features * self.unit) for attribute, head in self.heads.items()}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Penultimate features of uint8 pictures: float32 (B, 64), without a graph."""
        return self(images)

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """The likeliest value of each attribute: int64 (B,) indices into ``names[attribute]``."""
        return {name: row.argmax(1) for name, row in self.logits(self(images)).items()}


def hold_out(groups: Tensor, fraction: float, seed: int) -> Tensor:
    """Mark about ``fraction`` of the samples, whole groups only.

    One scan rendered in six colours is one group: were it on both sides of a split, the side held
    out would test memory.

    Args:
        groups: (N,) int64, the group of each sample.

    Returns: bool (N,), true for the samples held out.
    """
    distinct = torch.unique(groups)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    return torch.isin(groups, distinct[order[: round(fraction * len(distinct))]])


def train_judge(
    images: Tensor,
    labels: Mapping[str, Tensor],
    names: Mapping[str, Sequence[str]],
    *,
    seed: int,
    held_out: Tensor,
    steps: int = 500,
) -> tuple[Judge, dict[str, float]]:
    """Train a `Judge` on labelled pictures; the global random state is left as it was.

    Args:
        images: uint8 (N, 3, S, S), all of them in memory.
        labels: per attribute int64 (N,), indices into ``names[attribute]``.
        names: the values of each attribute.
        held_out: bool (N,), the samples that are only tested on.

    Returns: the judge in evaluation mode, and its held-out accuracy per attribute (also kept in
    ``judge.accuracy``).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(names, size=images.shape[-1], trained_on=fingerprint(images, labels))
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    trained_on = (~held_out).nonzero()[:, 0]
    judge.train()
    for _ in range(steps):
        rows = trained_on[torch.randint(len(trained_on), (_BATCH,), generator=generator)]
        logits = judge.logits(judge(_jitter(images[rows], generator)))
        losses = [F.cross_entropy(logits[name], labels[name][rows]) for name in names]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    judge.eval().requires_grad_(False)
    judge.unit = extract(judge, images[~held_out]).var(0).mean().sqrt()
    tested = {name: values[held_out] for name, values in labels.items()}
    for name, guesses in _predict_all(judge, images[held_out]).items():
        judge.accuracy[name] = (guesses == tested[name]).double().mean().item()
    return judge, dict(judge.accuracy)


def save_judge(judge: Judge, path: str | Path) -> None:
    """Write one safetensors file: the weights, and as metadata what `load_judge` needs besides."""
    facts = {
        "names": judge.names,
        "size": judge.size,
        "accuracy": judge.accuracy,
        "trained_on": judge.trained_on,
    }
    weights = {key: value.contiguous() for key, value in judge.state_dict().items()}
    write_atomic(path, save(weights, {_FORMAT: json.dumps(facts)}))


def load_judge(path: str | Path) -> Judge:
    """Read what `save_judge` wrote, in evaluation mode on the CPU.

    Raises:
        UserError: no such file, not a safetensors file, or not a judge's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the judge first") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error}); train the judge anew") from None
    if _FORMAT not in metadata:
        raise UserError(f"{path}: format: not a judge's file, {_FORMAT}; train the judge anew")
    facts = json.loads(metadata[_FORMAT])
    with torch.random.fork_rng(devices=[]):  # Layers are filled at random before they are read.
        judge = Judge(**facts)
    judge.load_state_dict(weights)
    return judge.eval().requires_grad_(False)


def _predict_all(judge: Judge, images: Tensor) -> dict[str, Tensor]:
    """`Judge.predict` over many pictures, a batch at a time."""
    parts = [judge.predict(chunk) for chunk in images.split(500)]
    return {name: torch.cat([part[name] for part in parts]) for name in judge.names}


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture turned, scaled, slanted and shifted a little, with faint noise.

    uint8 (B, 3, S, S) to float32 in about [0, 255]. The ranges (10 degrees, 12%, 15%, two pixels in
    32) are those between two people's hands; the noise keeps features smooth, so that a decoder's
    faint artefacts do not move them far.
    """
    turn, scale, slant, right, down = (
        (torch.rand(5, len(images), generator=generator) * 2 - 1)
        * torch.tensor([math.radians(10), 0.12, 0.15, 0.125, 0.125])[:, None]
    ).unbind()
    cos, sin = turn.cos() * (1 + scale), turn.sin() * (1 + scale)
    rows = [torch.stack([cos, sin + slant, right], 1), torch.stack([-sin, cos, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return moved + 8 * torch.randn(moved.shape, generator=generator)


def fingerprint(images: Tensor, labels: Mapping[str, Tensor]) -> str:
    """SHA-256 of pictures and labels, in hex."""
    digest = hashlib.sha256(images.contiguous().numpy().data)
    for name in sorted(labels):
        digest.update(name.encode() + labels[name].long().contiguous().numpy().tobytes())
    return digest.hexdigest()
