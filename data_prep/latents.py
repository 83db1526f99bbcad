"""`data_prep latents`: the autoencoder's latents of every image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.shards import CODE, IMAGES, Sample, Tally
from data_prep.transform import Convert, output_for, transform_by
from data_prep.workers import convert_on
from stack.data.decode import FIELDS, encode_npy
from stack.data.index import Manifest, VaeInfo
from stack.data.shard import SampleError
from stack.nets.clip import ClipImages, load_clip_images
from stack.nets.vae import Autoencoder, from_uint8, load_vae, vae_hash
from stack.util.code import folder_hash
from stack.util.errors import UserError

_LOOK = 4
"""Batches that are looked through for images of one size."""


@dataclass(frozen=True)
class _Decoded:
    """`pixels`: uint8 (H, W, 3)."""

    key: str
    fields: dict[str, bytes]
    pixels: np.ndarray


@dataclass(frozen=True)
class _Encoders:
    vae: Autoencoder
    clip: ClipImages | None
    device: torch.device


def latents(
    shards: Path,
    out: Path,
    *,
    vae: Path,
    clip: Path | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    drop_images: bool = False,
    overwrite: bool = False,
) -> Manifest:
    """Write SHARDS anew into OUT with `latent.npy`: posterior mean, fp16 (4, H/f, W/f), unscaled.

    Images that cannot be decoded are left out, counted as `dropped`. Images of several sizes are
    encoded with others of their size.

    Args:
        clip: a CLIP folder, for `clip.npy`: its image embedding, fp16 (D,), not of unit length.
        device: as torch names it; `cuda` is every GPU, with a process each, and so are several
            names with commas.

    Raises:
        UserError: no images, of a size that the autoencoder does not divide, or latents of another
            autoencoder there.
    """
    before, digest = Manifest.read(shards), vae_hash(vae)
    if before.vae and before.vae.hash != digest:
        raise UserError(
            f"{shards}: vae: holds latents of another autoencoder ({before.vae.hash[:12]}, "
            f"{vae} is {digest[:12]}); start from shards without latents"
        )
    if not before.holds(*IMAGES):
        raise UserError(f"{shards}: {'|'.join(IMAGES)}: not every sample has an image")
    origin = {
        "verb": "latents",
        "source": before.fingerprint,
        "vae": digest,
        "drop_images": drop_images,
    }
    if clip:
        load_clip_images(clip)
        origin["clip"] = folder_hash(clip)
    devices = _devices(device)
    scale = load_vae(vae).scale  # Before anything there is overwritten.
    folder = output_for(shards, out, origin, overwrite=overwrite)
    make = partial(_converter, vae, clip, batch_size, drop_images)
    known = {"vae": VaeInfo(hash=digest, scale=scale), "code": {"latents": CODE}}
    convert = partial(convert_on, devices, make, shards, out)
    return transform_by("latents", shards, folder, convert, **known)


def _devices(names: str) -> list[str]:
    """The devices that are meant, each tried."""
    found = names.split(",")
    if names == "cuda":
        found = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cuda"]
    for name in found:
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device: {name}: {str(error).splitlines()[0]}") from None
    return found


def _converter(
    vae: Path, clip: Path | None, batch_size: int, drop_images: bool, device: str
) -> Convert:
    encoders = _Encoders(
        load_vae(vae).to(device),
        load_clip_images(clip).to(device) if clip else None,
        torch.device(device),
    )

    def convert(samples: Iterator[Sample], tally: Tally) -> Iterator[Sample]:
        decoded = _decoded(samples, tally, encoders.vae.factor)
        while look := list(islice(decoded, _LOOK * batch_size)):
            made = _encoded(encoders, look, batch_size)
            for sample, arrays in zip(look, made, strict=True):
                fields = sample.fields
                if drop_images:
                    fields = {name: data for name, data in fields.items() if name not in IMAGES}
                yield sample.key, {**fields, **arrays}

    return convert


def _decoded(samples: Iterator[Sample], tally: Tally, factor: int) -> Iterator[_Decoded]:
    for key, fields in samples:
        try:
            pixels = FIELDS["image"](fields)
        except SampleError:
            tally.counts["dropped"] += 1
            continue
        height, width, _ = pixels.shape
        if height % factor or width % factor:
            raise UserError(f"{key}: {width}x{height} pixels do not divide by the VAE's {factor}")
        yield _Decoded(key, fields, pixels)


def _encoded(
    encoders: _Encoders, samples: list[_Decoded], batch_size: int
) -> list[dict[str, bytes]]:
    """The new fields of every sample, computed with others of its size."""
    made: list[dict[str, bytes]] = [{} for _ in samples]

    def size(place: int) -> tuple[int, ...]:
        return samples[place].pixels.shape

    for _, group in groupby(sorted(range(len(samples)), key=size), key=size):
        while places := list(islice(group, batch_size)):
            pixels = np.stack([samples[place].pixels for place in places])
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(encoders.device)
            for name, rows in _arrays(encoders, images).items():
                for place, row in zip(places, rows.half().cpu().numpy(), strict=True):
                    made[place][name] = encode_npy(row)
    return made


@torch.inference_mode()
def _arrays(encoders: _Encoders, images: Tensor) -> dict[str, Tensor]:
    """By field, a row for each of the uint8 images (B, 3, H, W)."""
    arrays = {"latent.npy": encoders.vae.encode_mean(from_uint8(images))}
    if encoders.clip:
        arrays["clip.npy"] = encoders.clip(images)
    return arrays
