"""What generated pictures are compared with: statistics of real ones, computed once and kept.

The file tells what it is of: which extractor, which pictures, at what size. One made with another
extractor is refused, because distances between features of two networks mean nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stack.data.cache import ShardCache
from stack.data.decode import FIELDS, decode_image
from stack.data.shard import SampleError
from stack.data.stream import ShardStream
from stack.evaluate.extractors import KnownExtractor
from stack.evaluate.frechet import Moments
from stack.evaluate.stored import digest_of
from stack.util.errors import UserError
from stack.util.files import sha256_file, write_atomic
from stack.util.retry import reason

_FORMAT = "stack-reference-2"  # The one entry of metadata: safetensors writes several in any order.
_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp"}
_BATCH = 32
_CHUNK = 256  # pictures in memory

Pictures = Iterator[Callable[[], np.ndarray]]
"""Pictures that are still to be read: uint8 (H, W, 3)."""


@dataclass(frozen=True)
class Source:
    """Real pictures.

    Args:
        name: for people. fingerprint: of the files' names and contents, or of the shards'.
        pictures: starts at the first one.
    """

    name: str
    fingerprint: str
    count: int
    pictures: Callable[[], Pictures]


@dataclass(frozen=True)
class Reference:
    """Statistics of real features.

    Args:
        mean: float64 (D,). covariance: float64 (D, D), unbiased. count: N; 2 where not told.
        features: float32 (N, D), which recall and precision need; None if they were not kept.
        facts: extractor, fingerprint, source, source_fingerprint, resolution.
    """

    mean: Tensor
    covariance: Tensor
    count: int
    features: Tensor | None
    facts: dict[str, Any]

    def moments(self, device: torch.device | str = "cpu") -> Moments:
        """For `frechet_distance`."""
        moments = Moments(len(self.mean), device)
        moments.count, moments.mean = self.count, self.mean.to(device)
        moments.scatter = self.covariance.to(device) * (self.count - 1)
        return moments

    def save(self, path: str | Path) -> None:
        """One safetensors file."""
        tensors = {"mean": self.mean, "covariance": self.covariance}
        if self.features is not None:
            tensors["features"] = self.features
        facts = json.dumps(self.facts | {"count": self.count})
        write_atomic(path, save(tensors, {_FORMAT: facts}))


def folder_source(folder: str | Path) -> Source:
    """The pictures in a folder and the folders inside it, by name. Every file is read.

    Raises:
        UserError: no such folder, or no pictures in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of pictures")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"{folder}: no {', '.join(sorted(_SUFFIXES))} in it")
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as threads:
        for file, content in zip(files, threads.map(sha256_file, files), strict=True):
            digest.update(f"{file.relative_to(folder)} {content}\n".encode())

    def pictures() -> Pictures:
        return (partial(_from_file, file) for file in files)

    return Source(str(folder), digest.hexdigest(), len(files), pictures)


def shards_source(folders: Sequence[str], cache: ShardCache | None = None) -> Source:
    """The pictures of folders of shards, each once.

    Raises:
        UserError: the shards hold no pictures, or a folder is missing.
    """

    def stream() -> ShardStream:
        return ShardStream(folders, global_batch=1, lanes=1, seed=0, window=1, cache=cache)

    opened, image = stream(), FIELDS["image"]
    for folder, manifest in opened.manifests.items():
        if not manifest.holds(*image.members):
            raise UserError(f"{folder}: image: not in these shards; {image.made_by}")

    def pictures() -> Pictures:
        samples = islice(stream(), opened.steps_per_epoch)
        return (partial(_from_sample, sample) for sample in samples)

    facts = {"shards": [manifest.fingerprint for manifest in opened.manifests.values()]}
    return Source(", ".join(folders), digest_of(facts), opened.steps_per_epoch, pictures)


def reference(
    source: Source,
    extractor: KnownExtractor,
    path: str | Path,
    *,
    resolution: int | None = None,
    features: bool = True,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> Reference:
    """The statistics in the file ``path``; made first where there is none.

    Args:
        resolution: pictures are cut to the square in their middle and brought to this side (PIL,
            bicubic) before the extractor sees them; None: it sees them as they are.
        features: whether to keep them too, 4 D bytes a picture. on_pictures: called with the number
            of pictures after every few hundred.

    Raises:
        UserError: the file is of another extractor, other pictures or another resolution, or lacks
            the features; or a picture cannot be read.
    """
    facts = {
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "source": source.name,
        "source_fingerprint": source.fingerprint,
        "resolution": resolution,
    }
    path = Path(path)
    if path.is_file():
        found = load_reference(path, extractor)
        for key in ("source_fingerprint", "resolution"):
            if found.facts[key] != facts[key]:
                told = f"{found.facts[key]}, not {facts[key]}"
                raise UserError(f"{path}: {key}: {told}; name another file, or delete this one")
        if features and found.features is None:
            raise UserError(f"{path}: features: not kept; delete it, and it is made anew")
        return found
    rows, moments = [], Moments(extractor.dim)
    pictures = source.pictures()
    while chunk := list(islice(pictures, _CHUNK)):
        rows.append(_features(chunk, extractor, resolution))
        moments.update(rows[-1])
        if not features:
            rows.clear()
        on_pictures(len(chunk))
    mean, covariance = moments.finalize()
    kept = torch.cat(rows) if features else None
    made = Reference(mean, covariance, moments.count, kept, facts)
    made.save(path)
    return made


def load_reference(path: str | Path, extractor: KnownExtractor) -> Reference:
    """Read what :meth:`Reference.save` wrote.

    Raises:
        UserError: no such file, not a reference, or one in another extractor's features.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the real pictures it is to be of") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error}); make it anew") from None
    if _FORMAT not in metadata:
        raise UserError(f"{path}: format: not {_FORMAT}; delete it, and it is made anew")
    facts = json.loads(metadata[_FORMAT])
    if facts["fingerprint"] != extractor.fingerprint:
        told = f"{facts['extractor']} ({facts['fingerprint'][:8]})"
        here = f"{extractor.name} ({extractor.fingerprint[:8]})"
        raise UserError(f"{path}: extractor: {told}, not {here}; make it anew with this one")
    count = facts.pop("count")
    return Reference(tensors["mean"], tensors["covariance"], count, tensors.get("features"), facts)


def load_foreign(path: str | Path, extractor: KnownExtractor) -> Reference:
    """Mean and covariance from another program's npz file (``mu``, ``sigma``), such as EDM's and
    clean-fid's: good for a Frechet distance alone. Which network and resizing they are of, and of
    how many pictures, the file does not tell.

    Raises:
        UserError: no such file, not of that form, or of another width than the extractor's.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(file[name]).double() for name in ("mu", "sigma"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of statistics") from None
    except (OSError, ValueError, KeyError, BadZipFile, TypeError) as error:
        raise UserError(f"{path}: not an npz file with mu and sigma ({reason(error)})") from None
    if mean.shape != (extractor.dim,) or covariance.shape != (extractor.dim, extractor.dim):
        told = f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}"
        raise UserError(f"{path}: {told}, but {extractor.name} has {extractor.dim} features")
    facts = {"source": str(path), "source_fingerprint": sha256_file(path), "resolution": None}
    unknown = {"extractor": "not told", **facts, "count": None}
    return Reference(mean, covariance, 2, None, unknown)


def _features(
    chunk: Sequence[Callable[[], np.ndarray]], extractor: KnownExtractor, resolution: int | None
) -> Tensor:
    """Features of some pictures in their order: float32 (len(chunk), D)."""

    def read(picture: Callable[[], np.ndarray]) -> np.ndarray:
        return picture() if resolution is None else _square(picture(), resolution)

    with ThreadPoolExecutor() as threads:
        images = list(threads.map(read, chunk))
    found = torch.empty(len(images), extractor.dim)
    for shape in dict.fromkeys(image.shape for image in images):  # One shape a batch.
        places = torch.tensor([i for i, image in enumerate(images) if image.shape == shape])
        for some in places.split(_BATCH):
            batch = np.stack([images[i] for i in some.tolist()])
            found[some] = extractor(torch.from_numpy(batch).permute(0, 3, 1, 2)).float().cpu()
    return found


def squares(images: Tensor, side: int) -> Tensor:
    """Generated pictures, uint8 (B, 3, H, W), brought to a size as real ones are."""
    if images.shape[-2:] == (side, side):
        return images
    made = [_square(image.permute(1, 2, 0).numpy(), side) for image in images.cpu()]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """The square in the middle of a picture (H, W, 3), brought to (side, side, 3)."""
    height, width = image.shape[:2]
    small = min(height, width)
    top, left = (height - small) // 2, (width - small) // 2
    cut = Image.fromarray(np.ascontiguousarray(image[top : top + small, left : left + small]))
    return np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC))


def _from_file(path: Path) -> np.ndarray:
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: not a picture ({error}); replace or remove it") from None


def _from_sample(sample: dict[str, Any]) -> np.ndarray:
    try:
        return FIELDS["image"](sample)
    except SampleError as error:
        raise UserError(f"{sample['key']}: {error}; run python -m data_prep verify") from None
