"""HPSv2's weights under transformers' names, against a forward pass written out in open_clip's."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stack.evaluate import hps
from stack.evaluate.hps import clip_of_open_clip, hps_scores, load_hps
from stack.util.errors import UserError
from stack.util.files import sha256_file
from tests.evaluate.networks import CAPTIONS, pictures, tokenizer

WIDTH, HEADS, PATCH, SIDE, OUT, LENGTH = 32, 16, 8, 16, 10, 12

Weights = dict[str, Tensor]


def open_clip_weights(vocabulary: int) -> Weights:
    """Random weights with open_clip's names and shapes: two towers of two blocks."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    found = {
        "positional_embedding": random(LENGTH, WIDTH),
        "text_projection": random(WIDTH, OUT),
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": random(vocabulary, WIDTH),
        "ln_final.weight": 1 + random(WIDTH),
        "ln_final.bias": random(WIDTH),
        "visual.class_embedding": random(WIDTH),
        "visual.positional_embedding": random((SIDE // PATCH) ** 2 + 1, WIDTH),
        "visual.proj": random(WIDTH, OUT),
        "visual.conv1.weight": random(WIDTH, 3, PATCH, PATCH),
    }
    for name in ("visual.ln_pre", "visual.ln_post"):
        found |= {f"{name}.weight": 1 + random(WIDTH), f"{name}.bias": random(WIDTH)}
    for tower in ("", "visual."):
        for layer in range(2):
            block = f"{tower}transformer.resblocks.{layer}"
            shapes = {"attn.in_proj_": (3 * WIDTH, WIDTH), "attn.out_proj.": (WIDTH, WIDTH)}
            shapes |= {"mlp.c_fc.": (4 * WIDTH, WIDTH), "mlp.c_proj.": (WIDTH, 4 * WIDTH)}
            for part, (rows, columns) in shapes.items():
                found[f"{block}.{part}weight"] = random(rows, columns)
                found[f"{block}.{part}bias"] = random(rows)
            for part in ("ln_1", "ln_2"):
                found[f"{block}.{part}.weight"] = 1 + random(WIDTH)
                found[f"{block}.{part}.bias"] = random(WIDTH)
    return found


def norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])


def linear(x: Tensor, weights: Weights, name: str, dot: str = ".") -> Tensor:
    return F.linear(x, weights[f"{name}{dot}weight"], weights[f"{name}{dot}bias"])


def blocks(x: Tensor, weights: Weights, tower: str, mask: Tensor | float) -> Tensor:
    for layer in range(2):
        block = f"{tower}transformer.resblocks.{layer}"
        joint = linear(norm(x, weights, f"{block}.ln_1"), weights, f"{block}.attn.in_proj", "_")
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in joint.chunk(3, -1))
        likeness = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + mask
        seen = (likeness.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(seen, weights, f"{block}.attn.out_proj")
        inner = linear(norm(x, weights, f"{block}.ln_2"), weights, f"{block}.mlp.c_fc")
        x = x + linear(F.gelu(inner), weights, f"{block}.mlp.c_proj")
    return x


def picture_vectors(pixels: Tensor, weights: Weights) -> Tensor:
    patches = F.conv2d(pixels, weights["visual.conv1.weight"], stride=PATCH).flatten(2).mT
    whole = weights["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([whole, patches], 1) + weights["visual.positional_embedding"]
    x = blocks(norm(x, weights, "visual.ln_pre"), weights, "visual.", 0.0)
    return norm(x[:, 0], weights, "visual.ln_post") @ weights["visual.proj"]


def text_vectors(ids: Tensor, weights: Weights) -> Tensor:
    x = weights["token_embedding.weight"][ids] + weights["positional_embedding"]
    x = blocks(x, weights, "", torch.full((LENGTH, LENGTH), -math.inf).triu(1))
    ends = ids.argmax(1)  # The end of text has the highest id.
    return norm(x, weights, "ln_final")[torch.arange(len(ids)), ends] @ weights["text_projection"]


@torch.no_grad()
def test_the_converted_model_computes_what_open_clip_does() -> None:
    vocabulary = 50
    weights = open_clip_weights(vocabulary)
    model = clip_of_open_clip(weights, (HEADS, HEADS))
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=generator)
    ids = torch.randint(0, vocabulary - 1, (3, LENGTH), generator=generator)
    ids[:, 5:] = torch.tensor([[vocabulary - 1] + 6 * [0]])  # Padded with zeros, as open_clip.
    ours = model.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(ours, picture_vectors(pixels, weights), rtol=1e-4, atol=1e-4)
    ours = model.get_text_features(input_ids=ids).pooler_output
    torch.testing.assert_close(ours, text_vectors(ids, weights), rtol=1e-4, atol=1e-4)
    assert float(model.logit_scale) == pytest.approx(4.6)
    assert not any(value.requires_grad for value in model.parameters())


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Weights]:
    words = tokenizer()
    words.save_pretrained(tmp_path / "words")
    weights = open_clip_weights(len(words))
    torch.save({"state_dict": weights}, tmp_path / "HPS_v2.1_compressed.pt")
    return tmp_path / "HPS_v2.1_compressed.pt", tmp_path / "words", weights


@torch.no_grad()
def test_scores_are_a_hundred_cosines_of_captions_without_a_prefix(files) -> None:
    path, words, weights = files
    scorer, images = load_hps(path, words), pictures(4, SIDE, SIDE)
    assert scorer.name == "HPS v2.1"
    assert scorer.fingerprint == sha256_file(path)
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in (hps.MEAN, hps.STD))
    seen = picture_vectors((images / 255 - mean) / std, weights)
    ids = scorer.tokenizer(CAPTIONS, padding="max_length", truncation=True).input_ids
    wanted = 100 * F.cosine_similarity(seen, text_vectors(torch.tensor(ids), weights))
    torch.testing.assert_close(hps_scores(scorer, images, CAPTIONS), wanted, rtol=1e-4, atol=1e-3)


def test_the_name_tells_the_version(files) -> None:
    path, words, _ = files
    first = path.rename(path.with_name("HPS_v2_compressed.pt"))
    assert load_hps(first, words).name == "HPS v2.0"
    odd = first.rename(path.with_name("weights.pt"))
    with pytest.raises(UserError, match="which version"):
        load_hps(odd, words)


def test_what_is_not_there_or_not_open_clips_is_told(files) -> None:
    path, words, weights = files
    for missing in ((path.with_name("HPS_v2.pt"), words), (path, words / "none")):
        with pytest.raises(UserError, match="comes from https://huggingface"):
            load_hps(*missing)
    without = {k: v for k, v in weights.items() if k != "visual.proj"}
    extra = weights | {"score_predictor.weight": torch.zeros(2)}
    for state, told in ((without, "visual_projection"), (extra, "score_predictor"), ({}, "patch")):
        torch.save({"state_dict": state}, path)
        with pytest.raises(UserError, match=f"not open_clip's weights.*{told}") as error:
            load_hps(path, words)
        assert re.fullmatch(r"[^\n]+", str(error.value))


@pytest.mark.parametrize("length", [0, 1, 10, 100, 1000])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_file_is_told(files, zipped: bool, length: int) -> None:
    path, words, weights = files
    torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="not open_clip's weights"):
        load_hps(path, words)


def test_a_pickle_that_runs_code_is_not_run(files, tmp_path: Path) -> None:
    path, words, _ = files

    class Runs:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Runs()}, path)
    with pytest.raises(UserError, match="not open_clip's weights"):
        load_hps(path, words)
    assert not (tmp_path / "ran").exists()
