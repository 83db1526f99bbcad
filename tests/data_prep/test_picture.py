"""Bytes of any picture to the square that they should give."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_prep.download.outcome import MissError
from data_prep.download.picture import Target, fit
from tests.data_prep.picture_server import encoded, pixels

SIDE = 32
PNG = Target(SIDE, "png")


def square(data: bytes, target: Target = PNG) -> np.ndarray:
    with Image.open(io.BytesIO(fit(data, target).data)) as image:
        assert (image.size, image.mode) == ((target.resolution, target.resolution), "RGB")
        return np.asarray(image).astype(int)


def expected(array: np.ndarray, side: int = SIDE) -> np.ndarray:
    """What a centre crop and Pillow's own resizing make of it."""
    height, width = array.shape[:2]
    least = min(width, height)
    left, top = (width - least) // 2, (height - least) // 2
    box = (left, top, left + least, top + least)
    image = Image.fromarray(array).resize((side, side), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image).astype(int)


RGB = pixels(5)
GREY = np.repeat(pixels(5, channels=1), 3, axis=2)
LOSSLESS = {
    "png": (encoded(Image.fromarray(RGB), "png"), RGB),
    "bmp": (encoded(Image.fromarray(RGB), "bmp"), RGB),
    "webp": (encoded(Image.fromarray(RGB), "webp", lossless=True), RGB),
    "grey": (encoded(Image.fromarray(GREY[..., 0]), "png"), GREY),
    "16 bits": (encoded(Image.fromarray(GREY[..., 0].astype(np.uint16) * 257), "png"), GREY),
    "1 bit": (
        encoded(Image.fromarray(GREY[..., 0] > 127), "png"),
        np.where(GREY > 127, 255, 0).astype(np.uint8),
    ),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_the_pixels_that_are_in_them(name):
    data, array = LOSSLESS[name]
    assert np.abs(square(data) - expected(array)).max() <= 1


@pytest.mark.parametrize("size", [(80, 64), (300, 200), (641, 480), (1000, 1400), (33, 4000)])
def test_a_jpeg_that_is_decoded_small_looks_as_if_it_were_decoded_whole(size):
    array = pixels(7, *size)
    assert np.abs(square(encoded(Image.fromarray(array), quality=98)) - expected(array)).mean() < 2


@pytest.mark.parametrize("kind", ["gif", "avif", "cmyk"])
def test_lossy_formats_give_nearly_the_pixels(kind):
    image = Image.fromarray(RGB)
    made = {
        "gif": lambda: encoded(image.quantize(256), "gif"),
        "avif": lambda: encoded(image, "avif", quality=95),
        "cmyk": lambda: encoded(image.convert("CMYK"), quality=98),
    }
    assert np.abs(square(made[kind]()) - expected(RGB)).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(RGB)
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, limit in (("png", 1), ("jpeg", 4)):
        data = encoded(stored, kind, exif=exif, **({"quality": 98} if kind == "jpeg" else {}))
        assert np.abs(square(data) - expected(RGB)).mean() <= limit
        made = fit(data, PNG)
        assert (made.width, made.height, made.box) == (80, 64, (8, 0, 72, 64))


def test_what_is_transparent_becomes_white():
    colour = np.zeros((40, 40, 4), np.uint8)
    colour[:20] = (200, 10, 30, 255)
    colour[20:] = (9, 9, 9, 0)
    for image in (Image.fromarray(colour), Image.fromarray(colour).quantize()):
        made = square(encoded(image, "png"))
        assert np.abs(made[2, 2] - (200, 10, 30)).max() <= 2
        assert (made[-2, 2] == 255).all()
    key = Image.fromarray(colour[..., :3])
    made = square(encoded(key, "png", transparency=(9, 9, 9)))
    assert (made[-2, 2] == 255).all()


def test_colours_of_another_profile_become_those_of_srgb():
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert (
        np.abs(
            square(encoded(Image.fromarray(RGB), "png", icc_profile=srgb.tobytes())) - expected(RGB)
        ).max()
        <= 1
    )
    # A profile of another kind of picture cannot be applied, and is left out.
    wrong = ImageCms.ImageCmsProfile(lab).tobytes()
    for profile in (wrong, b"nonsense"):
        made = square(encoded(Image.fromarray(RGB), "png", icc_profile=profile))
        assert np.abs(made - expected(RGB)).max() <= 1
    # Red and blue changed places in the profile's primaries: as they do in the picture.
    swapped = bytearray(srgb.tobytes())
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    name = swapped.find("sRGB".encode("utf-16-be"))
    while name >= 0:
        swapped[name : name + 8] = "Test".encode("utf-16-be")
        name = swapped.find("sRGB".encode("utf-16-be"))
    made = square(encoded(Image.fromarray(RGB), "png", icc_profile=bytes(swapped)))
    assert np.abs(made - expected(RGB)[..., ::-1]).mean() < 3


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_what_fits_stays_as_it_is(kind):
    data = encoded(Image.fromarray(pixels(1, SIDE, SIDE)), kind)
    made = fit(data, Target(SIDE))
    assert made.data == data
    assert made.extension == {"jpeg": "jpg", "png": "png", "webp": "webp"}[kind]


@pytest.mark.parametrize("change", ["grey", "rotated", "transparent", "gif"])
def test_what_only_seems_to_fit_is_encoded_anew(change):
    image = Image.fromarray(pixels(1, SIDE, SIDE))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = {
        "grey": lambda: encoded(image.convert("L"), "png"),
        "rotated": lambda: encoded(image, exif=exif),
        "transparent": lambda: encoded(image.convert("RGBA"), "png"),
        "gif": lambda: encoded(image.quantize(), "gif"),
    }[change]()
    made = fit(data, Target(SIDE))
    assert made.extension == "jpg"
    assert made.data != data


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_it_is_written_in_the_format_that_was_asked_for(format):
    made = fit(encoded(Image.fromarray(RGB), "png"), Target(SIDE, format))
    with Image.open(io.BytesIO(made.data)) as image:
        assert image.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[format]
        assert np.abs(np.asarray(image).astype(int) - expected(RGB)).mean() < 3


def test_an_mpo_is_its_first_picture():
    two = [Image.fromarray(pixels(n)) for n in (1, 2)]
    data = encoded(two[0], "mpo", save_all=True, append_images=two[1:], quality=98)
    assert np.abs(square(data) - expected(pixels(1))).mean() < 3


JPEG = encoded(Image.fromarray(RGB), quality=90)
BAD = {
    "empty": (b"", "not_a_picture"),
    "text": (b"<html>" * 100, "not_a_picture"),
    "header only": (JPEG[:20], "not_a_picture"),
    "cut jpeg": (JPEG[:-100], "damaged"),
    "cut png": (LOSSLESS["png"][0][:-100], "damaged"),
    "cut webp": (LOSSLESS["webp"][0][:-100], "damaged"),
    "garbled jpeg": (JPEG[:700] + b"\xff\xd9\x00\xff" * 50 + JPEG[900:], "damaged"),
    "too small": (encoded(Image.fromarray(pixels(1, 31, 90))), "too_small"),
    "too large": (encoded(Image.new("1", (30_000, 30_000)), "png"), "too_many_pixels"),
    "rather large": (encoded(Image.new("1", (9_000, 9_000)), "png"), "too_many_pixels"),
    "one colour": (encoded(Image.new("RGB", (64, 64), "teal")), "blank"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_good_picture_is_refused_with_the_reason(name):
    data, reason = BAD[name]
    with pytest.raises(MissError) as refused:
        fit(data, Target(SIDE))
    assert (refused.value.miss.state, refused.value.miss.reason) == ("refused", reason)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "avif"])
def test_what_moves_is_refused(kind):
    frames = [Image.fromarray(pixels(n)) for n in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(MissError) as refused:
        fit(data, Target(SIDE))
    assert refused.value.miss.reason == "animated"
