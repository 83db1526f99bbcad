"""`data_prep latents`: the autoencoder's latents of every image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from data_prep.shards import IMAGES, Convert, Sample, Tally, output_for, transform
from stack.data.decode import FIELDS, encode_npy
from stack.data.index import Manifest, VaeInfo
from stack.data.shard import SampleError
from stack.nets.vae import Autoencoder, from_uint8, load_vae, vae_hash
from stack.util.errors import UserError


def latents(
    shards: Path,
    out: Path,
    *,
    vae: Path,
    batch_size: int = 64,
    device: str = "cpu",
    drop_images: bool = False,
    overwrite: bool = False,
) -> Manifest:
    """Write SHARDS anew into OUT with `latent.npy`: posterior mean, fp16, unscaled.

    Images that cannot be decoded are left out, counted as `dropped`.

    Raises:
        UserError: no images, images of differing sizes, latents of another autoencoder there.
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
    model = _on_device(load_vae(vae), device)  # Before anything there is overwritten.
    folder = output_for(shards, out, origin, overwrite=overwrite)
    convert = _converter(model, torch.device(device), batch_size, drop_images)
    known = {"vae": VaeInfo(hash=digest, scale=model.scale)}
    return transform("latents", shards, folder, convert, **known)


def _on_device(model: Autoencoder, device: str) -> Autoencoder:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {device}: {str(error).splitlines()[0]}") from None


def _converter(
    model: Autoencoder, device: torch.device, batch_size: int, drop_images: bool
) -> Convert:
    def convert(samples: Iterator[Sample], tally: Tally) -> Iterator[Sample]:
        decoded = _decoded(samples, tally, model.factor)
        while batch := list(islice(decoded, batch_size)):
            pixels = torch.from_numpy(_stack(batch)).permute(0, 3, 1, 2)
            with torch.inference_mode():
                means = model.encode_mean(from_uint8(pixels.to(device)))
            for (key, fields, _), mean in zip(batch, means.half().cpu().numpy(), strict=True):
                if drop_images:
                    fields = {name: data for name, data in fields.items() if name not in IMAGES}
                yield key, {**fields, "latent.npy": encode_npy(mean)}

    return convert


def _decoded(
    samples: Iterator[Sample], tally: Tally, factor: int
) -> Iterator[tuple[str, dict[str, bytes], np.ndarray]]:
    for key, fields in samples:
        try:
            image = FIELDS["image"](fields)
        except SampleError:
            tally.counts["dropped"] += 1
            continue
        if image.shape[0] % factor or image.shape[1] % factor:
            height, width, _ = image.shape
            raise UserError(f"{key}: {width}x{height} pixels do not divide by the VAE's {factor}")
        yield key, fields, image


def _stack(batch: list[tuple[str, dict[str, bytes], np.ndarray]]) -> np.ndarray:
    shapes = {image.shape: key for key, _, image in batch}
    if len(shapes) > 1:
        seen = "; ".join(f"{key} is {w}x{h}" for (h, w, _), key in sorted(shapes.items()))
        raise UserError(f"images differ in size ({seen}); resize them to one size first")
    return np.stack([image for _, _, image in batch])
