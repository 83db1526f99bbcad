"""Image embeddings of CLIP, from any folder in transformers' layout.

Pictures are prepared here: transformers' own image processors want torchvision.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel

from stack.util.errors import UserError
from stack.util.files import read_json


class ClipImages(nn.Module):
    """Pictures to vectors in CLIP's space, as they come: not of unit length.

    Args:
        mean, std: per channel, of the pixels in [0, 1] that the model was trained on.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: CLIPModel, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.vision, self.projection = model.vision_model, model.visual_projection
        self.size = int(model.config.vision_config.image_size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self.projection.out_features)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32 (B, dim), of the square in the middle."""
        side = min(images.shape[-2:])
        top, left = ((length - side) // 2 for length in images.shape[-2:])
        square = images[..., top : top + side, left : left + side].float()
        pixels = functional.interpolate(
            square, size=(self.size, self.size), mode="bicubic", antialias=True
        )
        # CLIP's own preparation rounds to whole pixels after resizing.
        pixels = pixels.round().clamp(0, 255) / 255
        states = self.vision(pixel_values=(pixels - self.mean) / self.std)
        return self.projection(states.pooler_output).float()


def load_clip_images(folder: str | Path) -> ClipImages:
    """The image half of a CLIP folder, frozen and in float32; UserError as :func:`read_clip`."""
    return ClipImages(*read_clip(folder)).requires_grad_(False).eval()


def read_clip(folder: str | Path) -> tuple[CLIPModel, list[float], list[float]]:
    """The model of a CLIP folder in float32, and the mean and deviation of its pixels.

    Raises:
        UserError: the folder lacks a file, or is of another kind of model.
    """
    folder = Path(folder)
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise UserError(f"{folder}/config.json: model_type: {kind!r} is not clip")
    file = folder / "preprocessor_config.json"
    prepared = read_json(file)
    for name in ("image_mean", "image_std"):
        if len(prepared.get(name, ())) != 3:
            raise UserError(f"{file}: {name}: must be three numbers; download the model again")
    if not any(folder.glob("model.safetensors*")):
        raise UserError(f"{folder}/model.safetensors: missing; download the model again with them")
    model = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    return model, prepared["image_mean"], prepared["image_std"]
