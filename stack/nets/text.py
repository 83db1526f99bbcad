"""Tokenizer and text encoder, conditioned exactly as stock Stable Diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from stack.nets.vae import part_hash
from stack.nets.weights import require, require_weights

if TYPE_CHECKING:
    from transformers import CLIPTextModel


class TextEncoder(nn.Module):
    """Captions to the last hidden states of CLIP's text model; no padding mask."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel) -> None:
        super().__init__()
        self.tokenizer, self.model = tokenizer, model

    @property
    def null_ids(self) -> Tensor:
        """(77,) int64 ids of the empty caption."""
        return self.tokenize([""])[0][0]

    def tokenize(self, captions: list[str]) -> tuple[Tensor, int]:
        """(B, 77) int64 ids, and how many captions were cut."""
        return tokenize(self.tokenizer, captions)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, 77) int64 ids to (B, 77, D) states; equal captions are encoded once."""
        unique, inverse = ids.unique(dim=0, return_inverse=True)
        return self.model(input_ids=unique).last_hidden_state[inverse]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> tuple[Tensor, int]:
    """(B, 77) int64 ids padded as SD pads, and how many captions were cut."""
    length = tokenizer.model_max_length
    cut = tokenizer(captions, padding="max_length", max_length=length, truncation=True)
    full = [text for text, mask in zip(captions, cut.attention_mask, strict=True) if all(mask)]
    whole = tokenizer(full, truncation=False, verbose=False).input_ids if full else []
    return torch.tensor(cut.input_ids), sum(len(row) > length for row in whole)


def load_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """The tokenizer of a pipeline folder."""
    require(folder, "tokenizer", "tokenizer.json|vocab.json")
    return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")


def load_text(folder: str | Path) -> TextEncoder:
    """Tokenizer and text encoder of a pipeline folder, frozen and in float32.

    Raises:
        UserError: the folder lacks one of them.
    """
    # Imported here: it takes several seconds, and ids need the tokenizer alone.
    from transformers import CLIPTextModel

    model = CLIPTextModel.from_pretrained(
        folder,
        subfolder="text_encoder",
        variant=require_weights(folder, "text_encoder"),
        use_safetensors=True,
        dtype=torch.float32,
    )
    return TextEncoder(load_tokenizer(folder), model).requires_grad_(False).eval()


def tokenizer_hash(folder: str | Path) -> str:
    """SHA-256 over the tokenizer's files."""
    return part_hash(folder, "tokenizer")
