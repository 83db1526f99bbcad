"""Networks in the layouts that evaluation reads, small and random, and a counting extractor."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from stack.evaluate.classifier import Classifier, Training, _Network, save_classifier
from stack.train.pretrain import new_tokenizer

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
CAPTIONS = ["a red one", "a blue two", "three green digits on a table", ""]


class InceptionStandIn(nn.Module):
    """Called as Inception's TorchScript file is: resizing inside, 2048 features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 7, stride=5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.layers.append(nn.Linear(16, 2048))

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = torch.nn.functional.interpolate(img.float(), size=(299, 299), mode="bilinear")
        features = self.layers((x - 128) / 128)
        return features if return_features else features.softmax(1)


def save_inception(path: Path) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(InceptionStandIn().eval()).save(path)
    return path


class Means:
    """Mean and spread of each channel: an extractor whose features are easily checked."""

    dim = 6

    def __init__(self, name: str = "means") -> None:
        self.name, self.fingerprint, self.calls = name, f"{name}-1", 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        pixels = images.float().flatten(2)
        return torch.cat([pixels.mean(2), pixels.std(2)], 1)


def tokenizer() -> CLIPTokenizer:
    made = new_tokenizer(CAPTIONS, 560)
    made.model_max_length = 12
    return made


def save_clip(folder: Path, size: int = 16) -> CLIPModel:
    """A CLIP folder with tokenizer and preprocessor_config.json."""
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2}
    words = tokenizer()
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    torch.manual_seed(0)
    text = {**tower, **ids, "vocab_size": len(words), "max_position_embeddings": 12}
    vision = {**tower, "image_size": size, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    prepared = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    return model


def untrained_classifier(folder: Path, classes: int = 3, size: int = 16) -> Path:
    """Features of a random network: as good as any other for a test of the way to them."""
    torch.manual_seed(0)
    names = tuple(str(number) for number in range(classes))
    training = Training(names, size, "", 1, 0, 1, True, 1.0, 0.5, 7)
    save_classifier(Classifier(_Network(classes), training), folder)
    return folder


def pictures(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Smooth random pictures, uint8 (count, 3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return smooth.clamp(0, 255).byte()
