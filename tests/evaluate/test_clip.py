"""CLIP and DINO from local folders, against transformers and PIL."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from stack.evaluate.clip import SOURCE, Clip, load_clip
from stack.evaluate.dino import load_dino
from stack.evaluate.diversity import in_batch_similarity
from stack.util.errors import UserError
from tests.evaluate.networks import CAPTIONS, MEAN, STD, pictures, save_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPModel]:
    path = tmp_path_factory.mktemp("clip") / "tiny-clip"
    return path, save_clip(path)


def prepared(images: Tensor, resized: int, cropped: int) -> Tensor:
    """As transformers' slow processors do it: PIL on whole pixels, then the middle."""
    rows = []
    for image in images.numpy():
        small = Image.fromarray(np.moveaxis(image, 0, 2)).resize(
            (resized, resized), Image.Resampling.BICUBIC
        )
        edge = (resized - cropped) // 2
        pixels = np.asarray(small)[edge : edge + cropped, edge : edge + cropped]
        rows.append((pixels / 255 - MEAN) / STD)
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float()


@torch.no_grad()
def test_scores_are_the_cosines_of_transformers(folder) -> None:
    path, model = folder
    clip, images = load_clip(path), pictures(4, 48, 48)
    scores = clip.score(images, CAPTIONS)
    words = clip.tokenizer(
        [f"A photo depicts {text}" for text in CAPTIONS], padding="max_length", truncation=True
    )
    theirs = model(
        input_ids=torch.tensor(words.input_ids),
        attention_mask=torch.tensor(words.attention_mask),
        pixel_values=prepared(images, 16, 16),
    )
    wanted = F.cosine_similarity(theirs.image_embeds, theirs.text_embeds)
    torch.testing.assert_close(scores, wanted, rtol=0, atol=2e-3)
    plain = clip.score(images, CAPTIONS, prefix="")
    assert not torch.allclose(plain, scores)


def test_as_an_extractor_it_gives_unit_vectors_at_any_batch_size(folder) -> None:
    clip, images = load_clip(folder[0]), pictures(7)
    features = clip(images)
    assert features.shape == (7, clip.dim) == (7, 10)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(7))
    parts = torch.cat([clip(part) for part in images.split(2)])
    torch.testing.assert_close(parts, features, rtol=0, atol=1e-5)
    assert clip.name == "tiny-clip"


def test_of_a_wide_picture_the_middle_counts(folder) -> None:
    clip, wide = load_clip(folder[0]), pictures(2, 32, 80)
    assert torch.equal(clip(wide), clip(wide[..., 24:56].contiguous()))


def test_the_fingerprint_is_of_the_weights(folder, tmp_path: Path) -> None:
    other = save_clip(tmp_path / "other", size=24)
    assert other.config.vision_config.image_size == 24
    ours, theirs = load_clip(folder[0]), load_clip(tmp_path / "other")
    assert ours.fingerprint == load_clip(folder[0]).fingerprint
    assert ours.fingerprint != theirs.fingerprint


def test_captions_that_are_too_long_are_cut(folder) -> None:
    clip = load_clip(folder[0])
    long = "a red one " * 20
    assert torch.equal(clip.texts([long]), clip.texts([long + "more"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("preprocessor_config.json", "preprocessor_config.json: no such file"),
        ("model.safetensors", "safetensors: missing"),
        ("config.json", "config.json: no such file"),
        ("tokenizer.json", "tokenizer.json or vocab.json: missing"),
    ],
)
def test_what_a_folder_lacks_is_named(tmp_path: Path, name: str, message: str) -> None:
    save_clip(tmp_path / "clip")
    (tmp_path / "clip" / name).unlink()
    with pytest.raises(UserError, match=message):
        load_clip(tmp_path / "clip")


def test_a_missing_folder_says_where_one_comes_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=SOURCE):
        load_clip(tmp_path / "none")
    with pytest.raises(UserError, match="facebook/dinov2"):
        load_dino(tmp_path / "none")


def save_dino(folder: Path, kind: str) -> torch.nn.Module:
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "dinov2":
        model = Dinov2Model(Dinov2Config(**tower)).eval()
        sizes = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
        sizes |= {"do_center_crop": True}
    else:
        model = ViTModel(ViTConfig(**tower)).eval()
        sizes = {"size": 16}
    model.save_pretrained(folder)
    text = json.dumps({"image_mean": MEAN, "image_std": STD, **sizes})
    (folder / "preprocessor_config.json").write_text(text)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("kind", "resized"), [("dinov2", 20), ("vit", 16)])
def test_dino_is_the_first_token_of_transformers(tmp_path: Path, kind: str, resized: int) -> None:
    model = save_dino(tmp_path / kind, kind)
    dino, images = load_dino(tmp_path / kind), pictures(4, 40, 40)
    states = model(pixel_values=prepared(images, resized, 16)).last_hidden_state
    wanted = F.normalize(states[:, 0], dim=-1)
    assert dino.dim == 16
    torch.testing.assert_close(dino(images), wanted, rtol=0, atol=2e-3)
    same = dino(images[:1].expand(4, -1, -1, -1))
    assert in_batch_similarity(same[None]) == pytest.approx(1)
    assert in_batch_similarity(dino(images)[None]) < 1


def test_another_network_is_no_dino(folder) -> None:
    with pytest.raises(UserError, match="model_type: 'clip' is not dinov2 or vit"):
        load_dino(folder[0])
    assert isinstance(load_clip(folder[0]), Clip)
