"""Inception-v3's pool features, from the TorchScript file that clean-fid and StyleGAN use.

The network is Heusel et al.'s (2017) of 2015, whose features every published FID is taken in. The
file holds it with its resizing: called on pictures of any size it resizes them itself, bilinearly
and without antialiasing, as the TensorFlow original; its ``layers`` take pictures of 299 pixels.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from stack.evaluate.clean_resize import SIDE, clean_resize
from stack.evaluate.extractors import exact, need
from stack.util.errors import UserError
from stack.util.files import sha256_file

log = logging.getLogger(__name__)

SOURCE = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt"
)
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of that file, 95607719 bytes, as k-diffusion and other public code pins it."""

Resize = Literal["clean", "network"]
"""Who brings pictures to 299 pixels: clean-fid's filter (what the paper reports), or the network
itself (what EDM's and StyleGAN's own figures use)."""


def cached_file() -> Path:
    """Where the file is kept that a URL names: torch's cache of networks (TORCH_HOME)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / f"inception-2015-12-05-{SHA256[:8]}.pt"


class Inception:
    """uint8 (B, 3, H, W) to the 2048 numbers before the classifier, float32 (B, 2048) on the CPU.

    Args:
        sha256: of the file; part of every result that it has a hand in.
    """

    dim = 2048

    def __init__(
        self, network: torch.jit.ScriptModule, sha256: str, resize: Resize, device: torch.device
    ) -> None:
        self.network, self.sha256, self.resize, self.device = network, sha256, resize, device

    @property
    def name(self) -> str:
        return f"inception-v3, {self.resize} resizing"

    @property
    def fingerprint(self) -> str:
        return f"{self.sha256}/{self.resize}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        # TorchScript rewrites a network after its first calls, and its roundings with it.
        with exact(), torch.jit.optimized_execution(False):
            if self.resize == "network":
                found = self.network(images.to(self.device), return_features=True)
            else:
                pixels = clean_resize(images.cpu(), SIDE).to(self.device)
                found = self.network.layers((pixels - 128) / 128)
        return found.reshape(len(images), self.dim).float().cpu()


def load_inception(
    path: str | Path, *, resize: Resize = "clean", device: torch.device | str = "cpu"
) -> Inception:
    """The network of a local file.

    Raises:
        UserError: no such file (the message says where it comes from), or not this network.
    """
    path = Path(path)
    need(path, "Inception-v3", SOURCE)
    device = torch.device(device)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
            network = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not TorchScript ({reason}); get {SOURCE}") from None
    if "layers" not in dict(network.named_children()):
        raise UserError(f"{path}: layers: no such part, so not Inception-v3; get {SOURCE}")
    sha256 = sha256_file(path)
    if sha256 != SHA256:
        log.warning("%s is not the file that published figures use, but %s", path, sha256)
    return Inception(network, sha256, resize, device)
