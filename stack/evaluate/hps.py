"""Human Preference Score v2 (Wu et al. 2023): 100 times the cosine of a CLIP tuned to taste.

Its weights come as open_clip's ViT-H/14; here they are given the names of transformers' CLIPModel,
which needs neither open_clip nor torchvision. Its authors pad pictures that are no squares, where
`Clip` cuts them; this project's are squares. They compute in float16, we in float32.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from stack.evaluate.clip import Clip, load_clip_tokenizer
from stack.evaluate.extractors import need
from stack.nets.pickles import load_tensors
from stack.util.errors import UserError
from stack.util.files import sha256_file
from stack.util.retry import reason

SOURCE = "https://huggingface.co/xswu/HPSv2 (HPS_v2_compressed.pt, or HPS_v2.1_compressed.pt)"
TOKENIZER = "https://huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
HEADS = 16
"""Of ViT-H/14, in both halves; the only size that the weights' shapes do not tell."""

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
"""OpenAI's, which open_clip prepares pictures with unless told otherwise."""

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_AROUND = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
_IN_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_QUERY_KEY_VALUE = re.compile(
    r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)"
)


def load_hps(
    weights: str | Path, tokenizer: str | Path, *, device: torch.device | str = "cpu"
) -> Clip:
    """The scorer of a file of weights; its name tells the version.

    Args:
        tokenizer: folder with CLIP's vocabulary, that of any CLIP model.

    Raises:
        UserError: a file is missing (the message says where it comes from), is not open_clip's, or
            its name tells no version.
    """
    path, vocabulary = Path(weights), Path(tokenizer)
    need(path, "HPSv2", SOURCE)
    need(vocabulary, "CLIP's vocabulary", TOKENIZER)
    version = re.search(r"v2(\.\d+)?", path.name)
    if version is None:
        raise UserError(f"{path}: which version? Keep the name that it has at {SOURCE}")
    try:
        found = load_tensors(path, mmap=True)
        model = clip_of_open_clip(found.get("state_dict", found), heads=(HEADS, HEADS))
    except (pickle.UnpicklingError, RuntimeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: not open_clip's weights ({reason(error)}); get {SOURCE}"
        ) from None
    return Clip(
        model,
        load_clip_tokenizer(vocabulary),
        name=f"HPS v2{version.group(1) or '.0'}",
        fingerprint=sha256_file(path),
        mean=MEAN,
        std=STD,
        device=device,
    )


def hps_scores(scorer: Clip, images: Tensor, captions: list[str]) -> Tensor:
    """100 times the cosine of each uint8 picture (B, 3, H, W) and its caption: float32 (B,)."""
    return 100 * scorer.score(images, captions, prefix="")


def clip_of_open_clip(weights: Mapping[str, Tensor], heads: tuple[int, int]) -> CLIPModel:
    """open_clip's weights of a ViT and a text transformer as transformers' model, in float32.

    Args:
        heads: of the attention over pictures, and over text.

    Raises:
        KeyError: weights are missing, or have other names. RuntimeError: a shape does not fit.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        renamed |= _renamed(name.removeprefix("module."), value.float())
    config = _config(renamed, heads)
    with torch.device("meta"):
        wanted = CLIPModel(config).state_dict().keys()
    if odd := sorted(wanted ^ renamed.keys()):
        raise KeyError(f"{odd[0]}: missing, or not expected")
    model = CLIPModel.from_pretrained(None, config=config, state_dict=renamed)
    return model.requires_grad_(False).eval()


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """One of open_clip's weights under transformers' names; its own name where it has none."""
    if name in _AROUND:
        return {_AROUND[name]: value}
    if name in _TRANSPOSED:
        return {_TRANSPOSED[name]: value.T.contiguous()}
    if match := _QUERY_KEY_VALUE.fullmatch(name):
        tower, layer, kind = match.groups()
        thirds = zip(("q", "k", "v"), value.chunk(3), strict=True)
        return {f"{_layer(tower, layer)}.self_attn.{x}_proj.{kind}": part for x, part in thirds}
    if (match := _IN_BLOCK.fullmatch(name)) and match.group(3) in _BLOCK:
        tower, layer, part, kind = match.groups()
        return {f"{_layer(tower, layer)}.{_BLOCK[part]}.{kind}": value}
    return {name: value}


def _layer(tower: str | None, number: str) -> str:
    return f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"


def _config(renamed: Mapping[str, Tensor], heads: tuple[int, int]) -> CLIPConfig:
    """What the shapes of a model's weights say of it; GELU as in LAION's models, not OpenAI's."""
    patches = renamed["vision_model.embeddings.patch_embedding.weight"]
    places = renamed["vision_model.embeddings.position_embedding.weight"]
    tokens = renamed["text_model.embeddings.token_embedding.weight"]
    positions = renamed["text_model.embeddings.position_embedding.weight"]
    out = renamed["visual_projection.weight"].shape[0]
    vision = CLIPVisionConfig(
        **_tower(renamed, "vision", heads[0]),
        patch_size=patches.shape[-1],
        image_size=patches.shape[-1] * math.isqrt(len(places) - 1),
        projection_dim=out,
    )
    text = CLIPTextConfig(
        **_tower(renamed, "text", heads[1]),
        vocab_size=len(tokens),
        max_position_embeddings=len(positions),
        projection_dim=out,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
    )
    return CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=out
    )


def _tower(renamed: Mapping[str, Tensor], tower: str, heads: int) -> dict[str, Any]:
    """Sizes of one of the two transformers."""
    layers = {name.split(".")[3] for name in renamed if name.startswith(f"{tower}_model.encoder.")}
    inside, width = renamed[f"{tower}_model.encoder.layers.0.mlp.fc1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": inside,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "hidden_act": "gelu",
    }
