"""Little input: one folder of digits shards, and pipeline folders with a VAE and a tokenizer."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_prep.cli import main


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `data_prep digits` writes, at 16 pixels."""
    out = tmp_path_factory.mktemp("digits") / "out"
    assert main(["digits", str(out), "--resolution", "16"]) == 0
    return out


@pytest.fixture
def few_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """`data_prep digits` as if scikit-learn had 200 scans, which is quicker."""
    import sklearn.datasets

    scans, labels = sklearn.datasets.load_digits(return_X_y=True)
    monkeypatch.setattr(
        sklearn.datasets, "load_digits", lambda **options: (scans[:200], labels[:200])
    )


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A pipeline folder by number: all have the same tokenizer, each its own VAE."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    made: dict[int, Path] = {}

    def make(number: int) -> Path:
        if number not in made:
            folder = made[number] = tmp_path_factory.mktemp(f"pipeline{number}")
            torch.manual_seed(number)
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(4, 4),
                norm_num_groups=2,
                latent_channels=4,
                scaling_factor=0.5,
            ).save_pretrained(folder / "vae")
            vocabulary = {piece: n for n, piece in enumerate(pieces)}
            tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
            tokenizer.save_pretrained(folder / "tokenizer")
            index = {"_class_name": "StableDiffusionPipeline"}
            (folder / "model_index.json").write_text(json.dumps(index))
        return made[number]

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line; returns exit status, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return (status, *capsys.readouterr())

    return call
