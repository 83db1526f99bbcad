"""The autoencoder between pictures and latents."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stack.nets.weights import HALF, require, require_weights, variant_of
from stack.util.files import sha256_file

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_OTHER = re.compile(r"\.(bin|ckpt|h5|msgpack|onnx|pb)$|\.non_ema\.")
_HALF = re.compile(rf"\.{HALF}[.-]")

DECODING = {"bf16": 1536 * 64, "fp32": 3072 * 64}
"""Bytes that Stable Diffusion's autoencoder takes for each site of latents, of 8x8 pixels, at the
peak of decoding, by the recipe's precision."""


class Autoencoder(nn.Module):
    """AutoencoderKL; latents are posterior means, unscaled, as in ``latent.npy``.

    Args:
        bf16: decode in bfloat16, weights and all. Encoding is always in float32: what a run makes
            of pictures is to be what data_prep has stored, and a run on latents encodes nothing.
    """

    def __init__(self, vae: AutoencoderKL, *, bf16: bool = False) -> None:
        super().__init__()
        self.vae = vae.to(memory_format=torch.channels_last)
        if bf16:
            for part in (vae.post_quant_conv, vae.decoder):
                part.to(torch.bfloat16)

    @property
    def scale(self) -> float:
        """Factor from unscaled latents to the ones diffusion runs on."""
        return float(self.vae.config.scaling_factor)

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode_mean(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to the posterior mean (B, 4, H/f, W/f), unscaled."""
        return self.vae.encode(images).latent_dist.mode()

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, 4, h, w) to float32 pictures (B, 3, h f, w f) in about [-1, 1]."""
        return self.vae.decode(latents.to(self.vae.post_quant_conv.weight.dtype)).sample.float()


def load_vae(folder: str | Path, *, bf16: bool = False) -> Autoencoder:
    """The autoencoder of a pipeline folder, frozen; bf16 as of :class:`Autoencoder`.

    Raises:
        UserError: the folder lacks it.
    """
    # Imported here: it takes several seconds, and hashing a folder needs none of it.
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(
        folder,
        subfolder="vae",
        variant=require_weights(folder, "vae"),
        use_safetensors=True,
        torch_dtype=torch.float32,
    )
    return Autoencoder(vae, bf16=bf16).requires_grad_(False).eval()


def vae_hash(folder: str | Path) -> str:
    """SHA-256 over the hashes of the autoencoder's config and weights."""
    return part_hash(folder, "vae")


def part_hash(folder: str | Path, part: str) -> str:
    """One SHA-256 for the files of a part of a pipeline folder, by name, without what lies beside
    them in other formats or precisions; weights in half precision where there are no others."""
    require(folder, part, "*.json")
    here = Path(folder) / part
    half, digest = variant_of(here) == HALF, hashlib.sha256()
    for file in sorted(here.iterdir()):
        if not _OTHER.search(file.name) and (half or not _HALF.search(file.name)):
            digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def to_uint8(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] to uint8, rounded."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 pictures to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
