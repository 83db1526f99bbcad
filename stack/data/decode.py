"""From the bytes of a sample's members to values, and from values to batches: one table row a
field that training can ask for."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from stack.data.shard import SampleError
from stack.util.retry import reason

if TYPE_CHECKING:
    from torch import Tensor

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Field:
    """How one field is read: from which members (any one of them), one sample's bytes to a
    value, a batch of values to what training gets, and what makes the field if it is missing.
    `is_array`: its member is an npy file, all of one shape; `stack` then also takes an array."""

    members: tuple[str, ...]
    decode: Callable[[Bytes], Any]
    stack: Callable[[Sequence[Any]], Any]
    made_by: str
    is_array: bool = False

    def __call__(self, raw: Mapping[str, Bytes]) -> Any:
        """Decode the field of one sample. SampleError when it is missing or garbled."""
        for member in self.members:
            if member in raw:
                try:
                    return self.decode(raw[member])
                # A decoder meets bytes of anyone's, and its errors are of any kind.
                except Exception as error:
                    raise SampleError(f"{member}: {reason(error)}") from None
        raise SampleError(f"{self.members[0]}: missing")


_NUMBERS = {
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
}


@lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape of a version 1 npy file, parsed once per distinct header. Only numbers
    that torch has, in this machine's byte order: others would fail as a batch."""
    if header[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("not a version 1 npy file")
    described = ast.literal_eval(header[10:].decode("latin-1").strip())
    if described["fortran_order"]:
        raise ValueError("column-major npy")
    dtype = np.dtype(described["descr"])
    if dtype.name not in _NUMBERS or not dtype.isnative:
        raise ValueError(f"{dtype} is not a native number of 8 to 64 bits")
    return dtype, described["shape"]


def decode_npy(data: Bytes) -> np.ndarray:
    """A view of an npy file's array (np.load costs some 30 times as much for a small one)."""
    start = npy_start(data)
    dtype, shape = _npy_header(bytes(data[:start]))
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def npy_start(data: Bytes) -> int:
    """Where the array begins in an npy file of version 1."""
    return 10 + int.from_bytes(data[8:10], "little")


def encode_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), (1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_image(data: Bytes) -> np.ndarray:
    """Image file to uint8 (H, W, 3)."""
    with Image.open(io.BytesIO(data)) as image:
        # Converting to the mode that it has would copy it.
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def decode_text(data: Bytes) -> str:
    return str(data, "utf-8")


def decode_class(data: Bytes) -> int:
    """A number that an int64 holds."""
    return int(np.int64(int(bytes(data))))


# torch is imported by what makes batches: writing shards needs none, and it is slow to import.


def _arrays(values: Sequence[np.ndarray]) -> Tensor:
    import torch

    return torch.from_numpy(np.asarray(values))


def _images(values: Sequence[np.ndarray]) -> Tensor:
    """Channels-last in memory, as decoded and as convolutions like it."""
    return _arrays(values).permute(0, 3, 1, 2)


def _tokens(values: Sequence[np.ndarray]) -> Tensor:
    return _arrays(values).long()


def _classes(values: Sequence[int]) -> Tensor:
    import torch

    return torch.tensor(values)


FIELDS: dict[str, Field] = {
    "image": Field(
        ("png", "jpg", "jpeg", "webp"), decode_image, _images, "these shards hold no pictures"
    ),
    "latent": Field(
        ("latent.npy",),
        decode_npy,
        _arrays,
        "run `python -m data_prep latents`",
        is_array=True,
    ),
    "tokens": Field(
        ("tokens.npy",),
        decode_npy,
        _tokens,
        "run `python -m data_prep captions`",
        is_array=True,
    ),
    "text": Field(("txt",), decode_text, list, "these shards have no captions"),
    "json": Field(("json",), lambda data: json.loads(bytes(data)), list, "no metadata here"),
    "cls": Field(("cls",), decode_class, _classes, "no classes here"),
}
"""What a batch can hold. Shapes: image uint8 (B, 3, H, W); latent float16 (B, 4, H / 8, W / 8),
unscaled; tokens int64 (B, 77); cls int64 (B,); text and json lists of B. Pixels and latents are
to be widened on the device that uses them."""
