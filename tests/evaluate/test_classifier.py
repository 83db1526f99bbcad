"""The classifier: learns, is the same again, comes back whole, and leaves no trace on the RNG."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from PIL import Image

from data_prep.shards import ShardFolder, Tally
from stack.cli import main
from stack.evaluate import classifier
from stack.evaluate.classes import read_classes
from stack.evaluate.classifier import (
    FACTS,
    WEIGHTS,
    Classifier,
    _augment,
    load_classifier,
    save_classifier,
    train_classifier,
)
from stack.evaluate.extractors import KnownExtractor
from stack.evaluate.features import extract
from stack.util.errors import UserError
from tests.cli.refusal import refused
from tests.evaluate.networks import pictures

COUNT, CLASSES = 400, 4


def classed(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures whose class is which of four colours they lean to."""
    labels = torch.arange(COUNT) % CLASSES
    tint = torch.tensor([[160, 0, 0], [0, 160, 0], [0, 0, 160], [120, 120, 0]])[labels]
    images = (pictures(COUNT, 16, 16, seed).float() * 0.3 + tint[:, :, None, None]).clamp(0, 255)
    return images.byte(), labels


HELD_OUT = torch.arange(COUNT) % 5 == 0


def train(seed: int = 0, epochs: int = 6) -> Classifier:
    """In ten small steps an epoch: all are right then at each of 20 seeds. 320 pictures are one
    batch otherwise, and after 12 steps of its size the outcome is luck: .54 to .98."""
    with patch.multiple(classifier, _BATCH=32, _LEARNING_RATE=0.03):
        return train_classifier(*classed(), held_out=HELD_OUT, seed=seed, epochs=epochs)


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return train()


def test_it_knows_pictures_it_has_not_seen(trained: Classifier) -> None:
    images, labels = classed()
    assert trained.training.accuracy >= 0.9
    assert (trained.training.samples, trained.training.tested) == (320, 80)
    found = (trained.predict(images[HELD_OUT]) == labels[HELD_OUT]).double().mean()
    assert found.item() == pytest.approx(trained.training.accuracy)


def test_features_have_unit_variance_and_do_not_depend_on_the_batch(trained: Classifier) -> None:
    extractor: KnownExtractor = trained
    images, _ = classed()
    whole = extract(extractor, images[~HELD_OUT])
    assert whole.shape == (320, extractor.dim)
    assert whole.var(0).mean().item() == pytest.approx(1, rel=1e-3)
    parts = extract(extractor, images[~HELD_OUT], batch_size=7)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_equal_seeds_make_equal_weights_and_others_do_not() -> None:
    first, again, other = train(0, 1), train(0, 1), train(1, 1)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert first.training.trained_on == other.training.trained_on


def test_training_and_reading_leave_the_random_state(trained: Classifier, tmp_path: Path) -> None:
    save_classifier(trained, tmp_path)
    before = torch.get_rng_state()
    train(0, 1)
    load_classifier(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_saved_it_comes_back_whole(trained: Classifier, tmp_path: Path) -> None:
    save_classifier(trained, tmp_path / "judge")
    again = load_classifier(tmp_path / "judge")
    assert again.training == trained.training
    assert again.fingerprint == trained.fingerprint
    images, _ = classed()
    assert torch.equal(again(images[:9]), trained(images[:9]))
    assert json.loads((tmp_path / "judge" / FACTS).read_text())["accuracy"] > 0


def test_what_is_not_a_classifier_is_refused(trained: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stack train-judge"):
        load_classifier(tmp_path / "none")
    save_classifier(trained, tmp_path / "a")
    save_classifier(train(1, 1), tmp_path / "b")
    (tmp_path / "a" / WEIGHTS).write_bytes((tmp_path / "b" / WEIGHTS).read_bytes())
    with pytest.raises(UserError, match="fingerprint: "):
        load_classifier(tmp_path / "a")
    (tmp_path / "b" / WEIGHTS).write_bytes(b"x")
    with pytest.raises(UserError, match=r"b/model\.safetensors: .*; train it anew"):
        load_classifier(tmp_path / "b")
    with pytest.raises(UserError, match="pictures of 32x24; this one is of 16x16"):
        trained(pictures(2, 24, 32))


def test_augmenting_shifts_over_mirrored_edges_and_flips_half() -> None:
    row = torch.arange(16, dtype=torch.uint8)
    images = row.expand(300, 3, 16, 16)
    found = _augment(images, torch.Generator().manual_seed(0), flips=True)
    assert found.dtype == torch.uint8
    flipped = (found[:, 0, 0, 8].int() - found[:, 0, 0, 7].int()) < 0
    assert 0.4 < flipped.double().mean() < 0.6
    straight = _augment(images, torch.Generator().manual_seed(0), flips=False)
    shifts = {tuple(one.tolist()) for one in straight[:, 0, 0]}
    assert len(shifts) == 9
    assert (3, 2, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)[1:] in {one[:15] for one in shifts}


def write_shards(folder: Path, count: int = COUNT) -> Path:
    """The pictures as shards, twenty to a class and shard."""
    images, labels = classed()
    out = ShardFolder(folder, {"test": count})
    for first in range(0, count, 80):
        rows = []
        for number in range(first, min(first + 80, count)):
            png = io.BytesIO()
            Image.fromarray(images[number].permute(1, 2, 0).numpy()).save(png, "png")
            note = json.dumps({"class": f"kind {labels[number]}"}).encode()
            fields = {"png": png.getvalue(), "cls": str(int(labels[number])).encode(), "json": note}
            rows.append((f"{number:06d}", fields))
        out.write(f"{first // 80:06d}.tar", rows, Tally(sizes=Counter({"16x16": len(rows)})))
    out.finish()
    return folder


def test_the_command_trains_on_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_shards(tmp_path / "shards")
    data = read_classes([str(shards)])
    images, labels = classed()
    assert data.names == tuple(f"kind {n}" for n in range(CLASSES))
    found = zip(data.images, data.labels, strict=True)
    wanted = zip(images, labels, strict=True)
    assert {(one.numpy().tobytes(), int(label)) for one, label in found} == {
        (one.numpy().tobytes(), int(label)) for one, label in wanted
    }
    out = tmp_path / "judge"
    assert main(["train-judge", str(shards), str(out), "--epochs", "2"]) == 0
    judge = load_classifier(out)
    assert f"{judge.training.accuracy:.2%} of 40 held-out pictures right" in capsys.readouterr().out
    assert judge.training.classes == data.names
    assert "exists already" in refused(capsys, "train-judge", shards, out)


def test_shards_without_classes_are_refused(
    world, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, "train-judge", world.shards, tmp_path / "judge")
    assert told.startswith(f"{world.shards}: cls: not in these shards; no classes here")
