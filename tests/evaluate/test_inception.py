"""Inception's call convention, and clean-fid's resizing against PIL itself."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stack.evaluate.clean_resize import clean_resize
from stack.evaluate.features import FeatureExtractor, extract
from stack.evaluate.inception import SOURCE, load_inception
from stack.util.errors import UserError
from stack.util.files import sha256_file
from tests.evaluate.networks import InceptionStandIn, pictures, save_inception

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inception(tmp_path_factory.mktemp("inception") / "inception.pt")


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (299, 299), (400, 512)])
@pytest.mark.parametrize("noise", [False, True])
def test_resizing_is_clean_fids(height: int, width: int, noise: bool) -> None:
    """Channel by channel in mode F, and no rounding: equal to the last bit."""
    images = pictures(2, height, width)
    if noise:
        images = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(0))
        images = images.byte()
    found = clean_resize(images)
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, 299, 299)
    for image, mine in zip(images.numpy(), found.numpy(), strict=True):
        for channel, row in zip(image, mine, strict=True):
            floats = Image.fromarray(channel.astype(np.float32))
            assert floats.mode == "F"
            wanted = np.asarray(floats.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
            assert np.array_equal(row, wanted)


def test_resizing_antialiases_and_does_not_round() -> None:
    fine = torch.zeros(1, 3, 598, 598, dtype=torch.uint8)
    fine[..., ::2] = 255  # Stripes too fine for 299 pixels are grey, not black or white.
    small = clean_resize(fine)[..., 5:-5]
    assert (small - 127.5).abs().max() < 5
    assert (small != small.round()).any()


def test_features_are_the_layers_of_resized_pictures(file: Path) -> None:
    extractor: FeatureExtractor = load_inception(file)
    images = pictures(3)
    features = extractor(images)
    assert features.shape == (3, extractor.dim) == (3, 2048)
    assert features.dtype == torch.float32
    torch.manual_seed(0)
    layers = InceptionStandIn().eval().layers
    with torch.no_grad():
        wanted = layers((clean_resize(images) - 128) / 128)
    torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-6)


def test_the_networks_own_resizing(file: Path) -> None:
    images = pictures(3)
    inside = load_inception(file, resize="network")
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = InceptionStandIn().eval()(images, return_features=True)
    torch.testing.assert_close(inside(images), wanted, rtol=1e-5, atol=1e-6)
    clean = load_inception(file)
    assert inside.fingerprint != clean.fingerprint
    assert inside.name != clean.name
    assert inside.sha256 == clean.sha256 == sha256_file(file)


def test_features_repeat_and_do_not_depend_on_the_batch(file: Path) -> None:
    extractor, images = load_inception(file), pictures(10)
    calls = [extractor(images) for _ in range(4)]
    assert all(torch.equal(calls[0], again) for again in calls)
    parts = extract(extractor, images, batch_size=3)
    torch.testing.assert_close(parts, calls[0], rtol=0, atol=1e-5)


def test_a_file_that_others_do_not_use_is_told(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_inception(file)
    assert sha256_file(file) in caplog.text


def test_missing_or_wrong_files_say_where_it_comes_from(tmp_path: Path) -> None:
    text, other = tmp_path / "text.pt", tmp_path / "other.pt"
    text.write_text("no network")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(other)
    for path, told in ((tmp_path / "none.pt", "no such file"), (text, "not Torch"), (other, "lay")):
        with pytest.raises(UserError, match=told) as error:
            load_inception(path)
        assert SOURCE in str(error.value)
        assert "\n" not in str(error.value)
