"""What is counted on the meta device is the same with results' shapes remembered."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stack.parallel.memory import PeakBytes
from stack.train.build_cost import Imagined
from stack.train.build_subject import sd_subject
from stack.train.flops import FlopCounter
from stack.train.imagined import MetaCache
from tests.train.small import recipe_of, two_levels


def counted(*, cached: bool) -> tuple[int, int]:
    """Operations of an iteration, and its peak of memory."""
    imagined = Imagined(recipe_of(size=32), sd_subject(two_levels(8)), 2)
    with (
        MetaCache() if cached else nullcontext(),
        PeakBytes(imagined.held(), meta=True) as memory,
        FlopCounter() as counter,
    ):
        imagined.joint()
    return counter.total, memory.peak


def test_what_is_counted_is_the_same() -> None:
    assert counted(cached=True) == counted(cached=False)


def test_a_known_result_is_a_new_tensor_and_a_view_is_none() -> None:
    x = torch.empty(6, 4, 8, device="meta")
    with MetaCache():
        one, two = x + 1, x + 1
        assert one.untyped_storage()._cdata != two.untyped_storage()._cdata
        assert (one.shape, one.stride(), one.dtype) == (two.shape, two.stride(), two.dtype)
        assert (x + 1j).dtype != (x + 1).dtype
        for _ in range(2):
            flat = torch.ops.aten._unsafe_view(two, [48, 4])
            assert flat.untyped_storage()._cdata == two.untyped_storage()._cdata


class Seen(TorchDispatchMode):
    """Names of the operators that come through."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_shape_is_worked_out_once() -> None:
    x, y = torch.empty(3, 4, device="meta"), torch.empty(3, 5, device="meta")
    with Seen() as seen, MetaCache():
        for tensor in (x, x, y, x):
            tensor.relu()
    assert seen.names.count("aten.relu.default") == 2


def test_what_writes_is_done_each_time() -> None:
    with MetaCache():
        for _ in range(2):
            x = torch.empty(3, device="meta")
            assert x.add_(1) is x


def test_values_that_are_there_are_computed() -> None:
    """Of tensors of another device."""
    with MetaCache():
        assert [int(torch.tensor(n) + 1) for n in (1, 2, 2)] == [2, 3, 3]
