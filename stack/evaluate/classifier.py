"""A feature extractor that the project trains itself, on any labelled pictures (image, cls).

CIFAR-10's is the reason for it: a network that knows the data's classes tells whether a model's
pictures are of them, and its features give a Frechet distance and recall with no file from outside.
Such a distance compares with none taken in Inception's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stack.evaluate.extractors import exact
from stack.evaluate.features import extract, fingerprint, weights_fingerprint
from stack.util.errors import UserError
from stack.util.files import read_json, write_atomic, write_json

SOURCE = "python -m stack train-judge SHARDS OUT"
WEIGHTS, FACTS = "model.safetensors", "classifier.json"

_FORMAT = "stack-classifier-1"
_WIDTHS = (16, 64, 128, 256)
_BATCH = 256
_LEARNING_RATE = 0.2
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4
_SHIFT = 4  # pixels, each way


class _Block(nn.Module):
    """Two convolutions of which the first halves the sides, around a skip (He et al. 2016)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)
        self.skip = nn.Conv2d(inside, outside, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.skip(x))


class _Network(nn.Module):
    """Pixels in [0, 255] (B, 3, S, S) to penultimate features (B, 256) and a head over them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(_WIDTHS[0]),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise(_WIDTHS)))
        self.head = nn.Linear(_WIDTHS[-1], classes)
        # Convolutions are fastest in this layout, on CPUs as on tensor cores.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(
                    memory_format=torch.channels_last
                )

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return self.blocks(self.stem(x)).float().mean((2, 3))


@dataclass(frozen=True)
class Training:
    """How a classifier came to be, kept beside its weights.

    Args:
        classes: their names, in the order of the labels. size: side of the pictures.
        trained_on: SHA-256 of pictures, labels and which were held out. samples: trained on.
        unit: the features are divided by it, so that those of the pictures that it was trained on
            have a variance of one per number on average. accuracy: of held-out pictures; tested:
            how many those were.
    """

    classes: tuple[str, ...]
    size: int
    trained_on: str
    samples: int
    seed: int
    epochs: int
    flips: bool
    unit: float
    accuracy: float
    tested: int


class Classifier:
    """As a feature extractor: uint8 (B, 3, S, S) to float32 (B, 256) on the CPU.

    Raises:
        UserError: when called with pictures of another size than it was trained on.
    """

    dim = _WIDTHS[-1]

    def __init__(self, network: _Network, training: Training) -> None:
        self.network = network.eval().requires_grad_(False)
        self.training = training
        # The unit is no weight, but moves every distance.
        self.fingerprint = f"{weights_fingerprint(network)}/{training.unit:.9g}"

    @property
    def name(self) -> str:
        return f"classifier of {len(self.training.classes)} classes at {self.training.size} pixels"

    @property
    def device(self) -> torch.device:
        return self.network.head.weight.device

    def to(self, device: torch.device | str) -> Classifier:
        """The same one, moved."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        size = self.training.size
        if images.shape[-2:] != (size, size):
            height, width = images.shape[-2:]
            told = f"pictures of {width}x{height}; this one is of {size}x{size}"
            raise UserError(f"{self.name}: {told}; train one of those: {SOURCE}")
        with exact():
            return (self.network(images.to(self.device)) / self.training.unit).cpu()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """What the head says of features (B, 256): float32 (B, classes) on the CPU."""
        with exact():
            scaled = features.to(self.device) * self.training.unit
            return self.network.head(scaled).cpu()

    def predict(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """The likeliest class of uint8 pictures (N, 3, S, S): int64 (N,)."""
        return self.logits(extract(self, images, batch_size)).argmax(1)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    held_out: Tensor,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    epochs: int = 14,
    flips: bool = True,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Classifier:
    """Train a classifier; the global random state is left as it was.

    A function of its arguments and the number of threads. Where the processor (or GPU) multiplies
    in bf16, it trains in that; features are always taken in float32.

    Args:
        images: uint8 (N, 3, S, S), S a multiple of 8. labels: int64 (N,), from 0.
        held_out: bool (N,), the pictures that are only tested on.
        classes: their names; the labels' numbers if None. flips: whether a mirrored picture is
            as good (not so for digits). on_epoch: called with the epochs done and the mean loss.

    Raises:
        ValueError: nothing is held out, or nothing is trained on.
    """
    if not held_out.any() or held_out.all():
        raise ValueError("some pictures must be held out, and some trained on")
    names = tuple(classes or (str(n) for n in range(int(labels.max()) + 1)))
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Network(len(names))
    network.to(device)
    own = (~held_out).nonzero()[:, 0]
    rows = _epochs_of(own, epochs, torch.Generator().manual_seed(seed))
    _fit(network, images, labels, rows, epochs, flips=flips, seed=seed, on_epoch=on_epoch)
    training = Training(
        classes=names,
        size=images.shape[-1],
        trained_on=fingerprint(images, {"label": labels, "held out": held_out}),
        samples=len(own),
        seed=seed,
        epochs=epochs,
        flips=flips,
        unit=1.0,
        accuracy=0.0,
        tested=int(held_out.sum()),
    )
    plain = Classifier(network, training)
    unit = extract(plain, images[own]).var(0).mean().sqrt().item()
    right = plain.predict(images[held_out]) == labels[held_out]
    accuracy = right.double().mean().item()
    return Classifier(network, Training(**asdict(training) | {"unit": unit, "accuracy": accuracy}))


def save_classifier(classifier: Classifier, folder: str | Path) -> None:
    """Write ``model.safetensors`` and ``classifier.json``."""
    weights = {name: value.cpu() for name, value in classifier.network.state_dict().items()}
    plain = {name: value.contiguous() for name, value in weights.items()}
    write_atomic(Path(folder) / WEIGHTS, save(plain))
    facts = asdict(classifier.training) | {"fingerprint": classifier.fingerprint}
    write_json(Path(folder) / FACTS, {"format": _FORMAT} | facts)


def load_classifier(folder: str | Path, *, device: torch.device | str = "cpu") -> Classifier:
    """Read what `save_classifier` wrote.

    Raises:
        UserError: no such folder, not a classifier's, or its weights are not those it names.
    """
    folder = Path(folder)
    if not (folder / FACTS).is_file():
        raise UserError(f"{folder}: no {FACTS} in it; train a classifier: {SOURCE}")
    facts = read_json(folder / FACTS)
    if facts.pop("format", None) != _FORMAT:
        raise UserError(f"{folder / FACTS}: format: not {_FORMAT}; train it anew: {SOURCE}")
    wanted = facts.pop("fingerprint")
    training = Training(**facts | {"classes": tuple(facts["classes"])})
    with torch.random.fork_rng(devices=[]):  # Layers are filled at random before they are read.
        network = _Network(len(training.classes))
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder / WEIGHTS}: {reason}; train it anew: {SOURCE}") from None
    classifier = Classifier(network, training)
    if classifier.fingerprint != wanted:
        found = classifier.fingerprint[:8]
        raise UserError(f"{folder}: fingerprint: {found}, not {wanted[:8]}; get it again")
    return classifier.to(device)


def _epochs_of(own: Tensor, epochs: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of every batch: all of ``own`` in a new order each epoch, but for a last short batch."""
    batch = min(_BATCH, len(own))
    steps = len(own) // batch
    orders = (own[torch.randperm(len(own), generator=generator)] for _ in range(epochs))
    return [rows for order in orders for rows in order[: steps * batch].split(batch)]


def _fit(
    network: _Network,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    epochs: int,
    *,
    flips: bool,
    seed: int,
    on_epoch: Callable[[int, float], None],
) -> None:
    device = network.head.weight.device
    optimizer = torch.optim.SGD(
        network.parameters(),
        _LEARNING_RATE,
        momentum=_MOMENTUM,
        weight_decay=_WEIGHT_DECAY,
        nesterov=True,
    )
    # Up for a fifth of the way, then down along a cosine.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=len(batches), pct_start=0.2
    )
    generator = torch.Generator().manual_seed(seed + 1)
    steps, total = len(batches) // epochs, 0.0
    network.train()
    for step, rows in enumerate(batches, 1):
        pixels = _augment(images[rows], generator, flips).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=_fast_bf16(device)):
            features = network(pixels)
        loss = F.cross_entropy(network.head(features), labels[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % steps == 0:
            on_epoch(step // steps, total / steps)
            total = 0.0


def _augment(images: Tensor, generator: torch.Generator, flips: bool) -> Tensor:
    """uint8 (B, 3, S, S), each shifted by up to four pixels over mirrored edges, half of them
    flipped."""
    count, _, height, width = images.shape
    down, right = torch.randint(-_SHIFT, _SHIFT + 1, (2, count, 1), generator=generator)
    rows = _mirrored(down + torch.arange(height), height)
    columns = _mirrored(right + torch.arange(width), width)
    if flips:
        turned = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(turned, columns.flip(1), columns)
    samples = torch.arange(count)[:, None, None]
    pixels = images.permute(0, 2, 3, 1)
    return pixels[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(places: Tensor, length: int) -> Tensor:
    """Places beyond the ends of a row, mirrored at its first and last pixel."""
    return length - 1 - (length - 1 - places.abs()).abs()


def _fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than float32 there: three times so on a CPU that multiplies in it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
