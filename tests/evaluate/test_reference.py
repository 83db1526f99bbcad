"""Statistics of real pictures: right, made once, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stack.evaluate.frechet import Moments, frechet_distance
from stack.evaluate.reference import (
    folder_source,
    load_foreign,
    load_reference,
    reference,
    shards_source,
    squares,
)
from stack.util.errors import UserError
from tests.evaluate.networks import Means, pictures
from tests.pipeline import SAMPLES, World

SIZES = [(20, 20), (24, 20), (20, 24), (20, 20), (31, 17)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Fifteen pictures of several sizes, in two folders, one of them grey."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(15):
        image = pictures(1, *SIZES[number % len(SIZES)], seed=number)[0]
        file = folder / ("more" if number % 2 else ".") / f"{number:02d}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    Image.open(folder / "00.png").convert("L").save(folder / "00.png")
    (folder / "readme.txt").write_text("no picture")
    return folder


def seen(folder: Path, resolution: int | None = None) -> torch.Tensor:
    """The features of all pictures, one by one."""
    rows = []
    for file in sorted(folder.rglob("*.png")):
        image = Image.open(file).convert("RGB")
        if resolution:
            side = min(image.size)
            left, top = ((size - side) // 2 for size in image.size)
            image = image.crop((left, top, left + side, top + side))
            image = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        rows.append(Means()(pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)))
    return torch.cat(rows)


@pytest.mark.parametrize("resolution", [None, 16])
def test_statistics_are_those_of_the_pictures(
    photos: Path, tmp_path: Path, resolution: int | None
) -> None:
    told: list[int] = []
    made = reference(
        folder_source(photos),
        Means(),
        tmp_path / "r.safetensors",
        resolution=resolution,
        on_pictures=told.append,
    )
    rows = seen(photos, resolution)
    assert made.features is not None
    torch.testing.assert_close(made.features, rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(made.mean, rows.double().mean(0))
    torch.testing.assert_close(made.covariance, torch.cov(rows.double().T))
    assert made.count == 15
    assert told == [15]
    assert made.facts["resolution"] == resolution
    assert made.facts["extractor"] == "means"


def test_it_is_made_once_and_read_back(photos: Path, tmp_path: Path) -> None:
    source, extractor, path = folder_source(photos), Means(), tmp_path / "r.safetensors"
    made = reference(source, extractor, path)
    calls = extractor.calls
    again = reference(folder_source(photos), extractor, path)
    assert extractor.calls == calls
    assert again.facts == made.facts
    assert again.count == made.count
    for name in ("mean", "covariance", "features"):
        assert torch.equal(getattr(again, name), getattr(made, name))
    whole = Moments(6).update(made.features)
    other = Moments(6).update(torch.rand(20, 6))
    wanted = frechet_distance(other, whole)
    assert frechet_distance(other, again.moments()) == pytest.approx(wanted, rel=1e-9)


def test_features_may_be_left_out(photos: Path, tmp_path: Path) -> None:
    source, path = folder_source(photos), tmp_path / "r.safetensors"
    kept = reference(source, Means(), tmp_path / "kept.safetensors")
    made = reference(source, Means(), path, features=False)
    assert made.features is None
    assert torch.equal(made.covariance, kept.covariance)
    assert load_reference(path, Means()).features is None
    with pytest.raises(UserError, match="features: not kept"):
        reference(source, Means(), path)


def test_what_does_not_fit_is_refused(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    reference(folder_source(photos), Means(), path)
    with pytest.raises(UserError, match=r"extractor: means \(means-1\), not other \(other-1\)"):
        load_reference(path, Means("other"))
    with pytest.raises(UserError, match="resolution: None, not 16"):
        reference(folder_source(photos), Means(), path, resolution=16)
    file = photos / "more/01.png"
    data = bytearray(file.read_bytes())
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # Another picture of the same size.
    with pytest.raises(UserError, match="source_fingerprint"):
        reference(folder_source(photos), Means(), path)
    file.unlink()
    with pytest.raises(UserError, match="source_fingerprint"):
        reference(folder_source(photos), Means(), path)


def test_shards_are_a_source_too(world: World, tmp_path: Path) -> None:
    made = reference(shards_source([str(world.shards)]), Means(), tmp_path / "r.safetensors")
    assert made.count == SAMPLES
    assert made.features is not None
    assert len(made.features.unique(dim=0)) == SAMPLES
    with pytest.raises(UserError, match="source_fingerprint"):
        reference(folder_source_of_one(tmp_path), Means(), tmp_path / "r.safetensors")


def folder_source_of_one(folder: Path):
    (folder / "one").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "one/0.png")
    return folder_source(folder / "one")


def test_shards_without_pictures(world: World, tmp_path: Path) -> None:
    from stack.data.index import Manifest

    manifest = Manifest.read(world.shards)
    fields = {name: count for name, count in manifest.fields.items() if name != "png"}
    for file in world.shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest.model_copy(update={"fields": fields}).write(tmp_path)
    with pytest.raises(UserError, match="image: not in these shards"):
        shards_source([str(tmp_path)])


def test_mistakes_are_one_line(photos: Path, tmp_path: Path) -> None:
    (photos / "03.png").write_bytes(b"garbled")
    with pytest.raises(UserError, match=r"03.png: not a picture"):
        reference(folder_source(photos), Means(), tmp_path / "r.safetensors")
    assert not (tmp_path / "r.safetensors").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such folder"):
        folder_source(tmp_path / "none")
    with pytest.raises(UserError, match=r"no \.jpeg"):
        folder_source(tmp_path / "empty")
    (tmp_path / "text").write_text("no statistics")
    save_file({"mean": torch.zeros(2)}, tmp_path / "foreign")
    for name, told in (("none.st", "no such file"), ("text", "not a safe"), ("foreign", "format")):
        with pytest.raises(UserError, match=told):
            load_reference(tmp_path / name, Means())


def test_generated_pictures_are_brought_to_a_size_as_real_ones(tmp_path: Path) -> None:
    images = pictures(3, 48, 40)
    for number, one in enumerate(images):
        Image.fromarray(one.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    extractor = Means()
    real = reference(folder_source(tmp_path), extractor, tmp_path / "r", resolution=16)
    assert real.features is not None
    made = squares(images, 16)
    assert made.shape == (3, 3, 16, 16)
    assert torch.equal(extractor(made), real.features)
    assert squares(made, 16) is made


def test_statistics_of_another_program(tmp_path: Path) -> None:
    """Their distance is that of the moments that they are of; other files are refused."""
    extractor = Means()
    features = extractor(pictures(40, seed=1)).double()
    own = Moments(extractor.dim).update(features)
    mean, covariance = own.finalize()
    np.savez(tmp_path / "real.npz", mu=mean.numpy(), sigma=covariance.numpy())
    found = load_foreign(tmp_path / "real.npz", extractor)
    assert found.features is None
    other = Moments(extractor.dim).update(extractor(pictures(30, seed=2)))
    wanted = frechet_distance(other, own)
    assert frechet_distance(other, found.moments()) == pytest.approx(wanted, rel=1e-9)
    np.savez(tmp_path / "narrow.npz", mu=mean.numpy()[:3], sigma=covariance.numpy())
    np.savez(tmp_path / "named.npz", mean=mean.numpy())
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], object), sigma=covariance.numpy())
    (tmp_path / "text.npz").write_text("x")
    for name, told in (
        ("none", "no such file"),
        ("narrow", r"mu \(3,\) and sigma \(6, 6\), but means has 6 features"),
        *((name, "not an npz file with mu and sigma") for name in ("named", "pickled", "text")),
    ):
        with pytest.raises(UserError, match=told):
            load_foreign(tmp_path / f"{name}.npz", extractor)
