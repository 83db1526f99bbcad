"""The numbers of a pickle's tensors: what is around them is refused like the rest of the file."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stack.nets.edm_blocks import CIFAR10
from stack.nets.edm_files import import_edm
from stack.util.errors import UserError
from tests.nets.test_edm_files import network, nvidia_pickle
from tests.util.evil_pickles import Run, touch

CONFIG = CIFAR10.model_copy(
    update={"img_resolution": 4, "model_channels": 4, "num_blocks": 1, "channel_mult": (1,)}
)


def legacy(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def storage(count: int, value: float = 0.0) -> bytes:
    with warnings.catch_warnings(action="ignore"):
        return legacy(torch.full((count,), value).storage())


NESTED: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "torch.save, legacy": (lambda s: legacy(touch(s)), r"GLOBAL posix\.system"),
    "torch.save, zip": (lambda s: zipped(touch(s)), r"GLOBAL posix\.system"),
    "a plain pickle": (lambda s: pickle.dumps(touch(s), 2), "refused"),
    "a call beside the storage": (
        lambda s: legacy({"a": torch.zeros(4), "b": touch(s)}),
        r"GLOBAL posix\.system",
    ),
    "a tensor": (lambda s: legacy(torch.zeros(4)), "holds a Tensor, not a storage"),
    "a number": (lambda s: legacy(3), "holds a int, not a storage"),
    "nothing": (lambda s: b"", "refused: EOFError"),
    "too little": (lambda s: storage(1), "outside its storage of 1 numbers"),
    "no number": (lambda s: storage(1000, float("nan")), "numbers that are not finite"),
    "infinity": (lambda s: storage(1000, float("inf")), "numbers that are not finite"),
}
"""Bytes in place of a tensor's storage, and what the refusal says."""


@pytest.mark.parametrize("case", NESTED)
def test_what_a_storages_bytes_hold_is_checked_likewise(case: str, tmp_path: Path) -> None:
    make, message = NESTED[case]
    sentinel, file = tmp_path / "ran", tmp_path / "net.pkl"
    good, evil = nvidia_pickle(network(CONFIG)), make(sentinel)
    raw = next(
        argument
        for operator, argument, _ in pickletools.genops(good)
        if operator.name == "BINBYTES"
    )
    old, new = (b"B" + struct.pack("<I", len(data)) + data for data in (raw, evil))
    assert old in good
    # Frames of protocol 4 say how long they are: written anew without.
    file.write_bytes(unframed(good).replace(old, new, 1))
    with pytest.raises(UserError, match=rf"net\.pkl: model\.\S+: .*{message}"):
        import_edm(file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [file]


TENSORS: dict[str, tuple[Callable[..., tuple[Any, ...]], str]] = {
    "strides of 0": (
        lambda storage, offset, size, stride, *rest: (storage, 0, size, (0,) * len(size), *rest),
        r"strides \(0.*\) do not fill",
    ),
    "beyond": (
        lambda storage, offset, size, stride, *rest: (storage, 1, size, stride, *rest),
        "outside its storage of",
    ),
    "before": (
        lambda storage, offset, size, stride, *rest: (storage, -1, size, stride, *rest),
        "outside its storage of",
    ),
}
"""A change to the arguments that make a tensor, and what the refusal says."""


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_is_its_storages_numbers_once(case: str, tmp_path: Path) -> None:
    """Otherwise a few bytes would be a tensor of any size, or hold what was in memory before."""
    change, message = TENSORS[case]

    class Changed(torch.nn.Parameter):
        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            rebuild, (inner, *rest) = super().__reduce_ex__(protocol)[:2]
            make, arguments = inner.__reduce_ex__(protocol)[:2]
            return rebuild, (Run(make, *change(*arguments)), *rest)

    made = network(CONFIG)
    made.map_layer0.weight = Changed(made.map_layer0.weight.detach())
    file = tmp_path / "net.pkl"
    file.write_bytes(nvidia_pickle(made))
    with pytest.raises(UserError, match=rf"map_layer0\.weight: refused: .*{message}"):
        import_edm(file, tmp_path / "out")


def test_tensors_do_not_share_a_storage_without_end(tmp_path: Path) -> None:
    made = network(CONFIG.model_copy(update={"model_channels": 64, "num_blocks": 4}))
    most = max(parameter.numel() for parameter in made.parameters())
    shared = Run(torch.storage._load_from_bytes, storage(most))  # type: ignore[attr-defined]

    class Sharing(torch.nn.Parameter):
        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            rebuild, (inner, *rest) = super().__reduce_ex__(protocol)[:2]
            make, (_, *arguments) = inner.__reduce_ex__(protocol)[:2]
            return rebuild, (Run(make, shared, *arguments), *rest)

    for module in made.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, Sharing(parameter.detach()))
    file = tmp_path / "net.pkl"
    file.write_bytes(nvidia_pickle(made))
    with pytest.raises(UserError, match=r"tensors of \d+ numbers in \d+ bytes"):
        import_edm(file, tmp_path / "out")


def unframed(data: bytes) -> bytes:
    """The same pickle without FRAME opcodes."""
    parts, start = [], 0
    for operator, _, place in pickletools.genops(data):
        if operator.name == "FRAME":
            parts.append(data[start:place])
            start = place + 9
    return b"".join([*parts, data[start:]])
