"""DINO features of pictures, for likeness within one prompt.

The token that stands for the whole picture, after the last normalisation, of a vision transformer
in transformers' layout: DINOv2 (Oquab et al. 2023) or the first DINO (Caron et al. 2021). Which of
them the paper took is not said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from stack.evaluate.extractors import exact, folder_fingerprint, middle, need
from stack.util.errors import UserError
from stack.util.files import read_json

SOURCE = "https://huggingface.co/facebook/dinov2-base (or dino-vitb16)"
_KINDS = ("dinov2", "vit")


class Dino:
    """uint8 (B, 3, H, W) to float32 (B, D) of unit length on the CPU.

    Args:
        resized: the shorter side after resizing. cropped: the side of the square cut from the
            middle of that. mean, std: per channel, of pixels in [0, 1].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        fingerprint: str,
        resized: int,
        cropped: int,
        mean: list[float],
        std: list[float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.fingerprint = name, fingerprint
        self.resized, self.cropped = resized, cropped
        self.device = torch.device(device)
        self.model = model.to(self.device).requires_grad_(False).eval()
        self.mean, self.std = (torch.tensor(row).view(3, 1, 1) for row in (mean, std))

    @property
    def dim(self) -> int:
        return int(self.model.config.hidden_size)

    def prepared(self, images: Tensor) -> Tensor:
        """What the network sees of uint8 pictures (B, 3, H, W): float32 (B, 3, crop, crop)."""
        square = middle(images).float()
        pixels = F.interpolate(square, size=(self.resized,) * 2, mode="bicubic", antialias=True)
        edge = (self.resized - self.cropped) // 2
        cut = pixels[..., edge : edge + self.cropped, edge : edge + self.cropped]
        # transformers' own preparation rounds to whole pixels after resizing.
        return (cut.round().clamp(0, 255) / 255 - self.mean) / self.std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        with exact():
            pixels = self.prepared(images.cpu()).to(self.device)
            whole = self.model(pixel_values=pixels).last_hidden_state[:, 0]
        return F.normalize(whole.float(), dim=-1).cpu()


def load_dino(folder: str | Path, *, device: torch.device | str = "cpu") -> Dino:
    """The model of a local folder, in float32.

    Raises:
        UserError: no such folder (the message says where one comes from), a file is missing, or it
            is another kind of model.
    """
    folder = Path(folder)
    need(folder, "DINO", SOURCE)
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in _KINDS:
        raise UserError(f"{folder}/config.json: model_type: {kind!r} is not {' or '.join(_KINDS)}")
    if not any(folder.glob("model.safetensors*")):
        raise UserError(f"{folder}/model.safetensors: missing; get the model again with them")
    prepared = read_json(folder / "preprocessor_config.json")
    resized = _side(prepared["size"])
    return Dino(
        AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32),
        name=folder.resolve().name,
        fingerprint=folder_fingerprint(folder),
        resized=resized,
        cropped=_side(prepared["crop_size"]) if prepared.get("do_center_crop") else resized,
        mean=prepared["image_mean"],
        std=prepared["image_std"],
        device=device,
    )


def _side(size: int | dict[str, Any]) -> int:
    """A side in pixels, in any of the ways that transformers has written it."""
    return size if isinstance(size, int) else int(size.get("shortest_edge") or size["height"])
