"""Bytes from anyone to a square RGB picture, or to the reason why not.

JPEG, most of the web, is decoded by simplejpeg, which tells of damage that Pillow overlooks, and
leaves out resolution that the resizing would throw away; everything else by Pillow.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError

from data_prep.download.outcome import MissError, refused
from data_prep.shards import EXTENSIONS

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP")

_OVERSAMPLING = 2
"""A JPEG is decoded to at least this many times the side that is wanted."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by the orientation that its EXIF states."""

Image.init()  # Image.open knows the formats that are named to it only after this.
# Sizes are checked here, before a pixel is decoded.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Target:
    """What pictures are made: squares of `resolution` pixels, centre-cropped, `format` with
    `quality` (of JPEG and WebP) where they have to be encoded anew. More than `max_pixels` in
    the original are refused."""

    resolution: int
    format: str = "jpg"
    quality: int = 95
    max_pixels: int = 64_000_000


@dataclass(frozen=True)
class Picture:
    """An encoded square. `width` and `height` are the original's, upright; `box` is the part of it
    that was kept (left, top, right, bottom); `sha256` is of the bytes that it was made of."""

    data: bytes
    extension: str
    width: int
    height: int
    box: tuple[int, int, int, int]
    sha256: bytes


def fit(data: bytes, target: Target) -> Picture:
    """Decode wholly, set upright, crop, resize, encode; bytes that fit already stay as they are.

    Raises:
        MissError: not a picture, damaged, animated, too small or large, or of one colour only.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            made = _square(data, image, target)
    except MissError:
        raise
    except UnidentifiedImageError:
        raise refused("not_a_picture") from None
    except Image.DecompressionBombError:
        raise refused("too_many_pixels") from None
    # A decoder meets bytes of anyone's, and its errors are of any kind.
    except Exception:
        raise refused("damaged") from None
    if made.kept in EXTENSIONS:
        encoded, extension = data, EXTENSIONS[made.kept]
    else:
        encoded, extension = _encode(made.rgb, target), target.format
    digest = hashlib.sha256(data).digest()
    return Picture(encoded, extension, *made.size, made.box, digest)


@dataclass(frozen=True)
class _Square:
    """The square, the upright original's size, the part of it, and the format of bytes that are
    this square already."""

    rgb: Image.Image
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    kept: str | None


def _square(data: bytes, image: Image.Image, target: Target) -> _Square:
    side = target.resolution
    if image.width * image.height > target.max_pixels:
        raise refused("too_many_pixels")
    if min(image.size) < side:
        raise refused("too_small")
    # An MPO is a JPEG with further pictures behind the first.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise refused("animated")
    upright, profile = _orientation(image), image.info.get("icc_profile")
    width, height = image.size if upright < 5 else image.size[::-1]
    box = _centre(width, height)
    decoded = _decode(data, image, side)
    if upright in _UPRIGHT:
        decoded = decoded.transpose(_UPRIGHT[upright])
    # A JPEG may come smaller than it is.
    scale_x, scale_y = decoded.width / width, decoded.height / height
    place = (box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y)
    square = decoded
    if decoded.size != (side, side):
        square = decoded.resize((side, side), Image.Resampling.LANCZOS, box=place)
    rgb = _to_rgb(square, profile)
    if not np.ptp(np.asarray(rgb), axis=(0, 1)).any():
        raise refused("blank")
    as_it_was = rgb is decoded and image.mode == "RGB" and upright not in _UPRIGHT
    return _Square(rgb, (width, height), box, image.format if as_it_was else None)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1  # Garbled EXIF says nothing; the pixels may be fine.


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _decode(data: bytes, image: Image.Image, side: int) -> Image.Image:
    """All pixels, in a mode that can be resized."""
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        least = _OVERSAMPLING * side
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=least, min_width=least, min_factor=2, strict=True
        )
        return Image.fromarray(pixels)
    image.load()
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits a pixel.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        return image.convert("RGBA")
    return image if image.mode in ("RGB", "RGBA", "L", "LA", "CMYK") else image.convert("RGB")


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Onto white where it is transparent, and into sRGB where it says that it is something else."""
    if image.mode in ("RGBA", "LA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                srgb = ImageCms.createProfile("sRGB")
                image = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError):
            return image.convert("RGB")  # As browsers do with a profile that they cannot read.
    return image if image.mode == "RGB" else image.convert("RGB")


def _encode(rgb: Image.Image, target: Target) -> bytes:
    if target.format == "jpg":
        # Full chroma: what was left by shrinking is worth keeping.
        return simplejpeg.encode_jpeg(np.asarray(rgb), target.quality, "RGB", "444")
    buffer = io.BytesIO()
    rgb.save(buffer, target.format, quality=target.quality)
    return buffer.getvalue()
