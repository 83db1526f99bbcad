"""CLIP score: how well pictures fit their captions, by the cosine of CLIP's two embeddings.

Any CLIP folder in transformers' layout serves; the paper's figures are those of OpenCLIP's
ViT-g/14 (LAION-2B), and Hessel et al. (2021) put "A photo depicts " before every caption.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from stack.evaluate.extractors import exact, folder_fingerprint, middle, need
from stack.nets.clip import ClipImages, read_clip
from stack.nets.text import tokenize
from stack.util.errors import UserError

SOURCE = "https://huggingface.co/laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
PREFIX = "A photo depicts "


class Clip:
    """Both halves of a CLIP model; as a feature extractor, its pictures' half.

    Args:
        name: printed beside its figures. fingerprint: of its weights and vocabulary.
        mean, std: per channel, of the pixels in [0, 1] that it was trained on.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        *,
        name: str,
        fingerprint: str,
        mean: list[float],
        std: list[float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.fingerprint, self.tokenizer = name, fingerprint, tokenizer
        self.device = torch.device(device)
        self.model = model.to(self.device).requires_grad_(False).eval()
        self.pictures: nn.Module = ClipImages(self.model, mean, std).to(self.device).eval()

    @property
    def dim(self) -> int:
        return int(self.model.config.projection_dim)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32 (B, dim) of unit length on the CPU; of pictures that are
        no squares, the square in the middle."""
        with exact():
            found = self.pictures(middle(images).to(self.device))
        return F.normalize(found, dim=-1).cpu()

    @torch.no_grad()
    def texts(self, captions: list[str]) -> Tensor:
        """Captions, cut where too long, to float32 (B, dim) of unit length on the CPU."""
        ids, _ = tokenize(self.tokenizer, captions)
        with exact():
            states = self.model.text_model(input_ids=ids.to(self.device)).pooler_output
            found = self.model.text_projection(states).float()
        return F.normalize(found, dim=-1).cpu()

    def score(self, images: Tensor, captions: list[str], prefix: str = PREFIX) -> Tensor:
        """Cosine of each picture and its caption, in [-1, 1]: float32 (B,).

        Args:
            images: uint8 (B, 3, H, W). prefix: put before every caption.
        """
        texts = self.texts([prefix + caption for caption in captions])
        return (self(images) * texts).sum(1)


def load_clip(folder: str | Path, *, device: torch.device | str = "cpu") -> Clip:
    """The model of a local folder in transformers' layout, in float32.

    Raises:
        UserError: no such folder (the message says where one comes from), or a file is missing.
    """
    folder = Path(folder)
    need(folder, "a CLIP model", f"{SOURCE} (any in transformers' layout)")
    model, mean, std = read_clip(folder)
    return Clip(
        model,
        load_clip_tokenizer(folder),
        name=folder.resolve().name,
        fingerprint=folder_fingerprint(folder),
        mean=mean,
        std=std,
        device=device,
    )


def load_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer beside a CLIP model; UserError if the folder has none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{folder}: tokenizer.json or vocab.json: missing; get the model again")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
