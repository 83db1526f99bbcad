"""The average of a network's weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stack.nets.ema import EMA


def filled(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    module = nn.Linear(3, 2).to(dtype)
    fill(module, value)
    return module


def fill(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


def test_starts_as_a_copy() -> None:
    module = filled(3.0)
    average = EMA(dict(module.named_parameters()), 0.99)
    fill(module, 7.0)
    assert all((value == 3).all() for value in average.tensors().values())
    assert set(average.tensors()) == {"weight", "bias"}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_recurrence(decay: float) -> None:
    """a <- a + (1 - d_n) (w - a), d_n = min(decay, (1 + n) / (10 + n))."""
    module = filled(1.0)
    average, expected = EMA(dict(module.named_parameters()), decay), 1.0
    for n in range(1, 30):
        fill(module, float(n))
        average.update()
        now = min(decay, (1 + n) / (10 + n))
        expected += (1 - now) * (n - expected)
        assert torch.allclose(average.tensors()["bias"], torch.full((2,), expected))
    assert average.updates == 29


def test_applied_and_back() -> None:
    module = filled(1.0)
    average = EMA(dict(module.named_parameters()), 0.5)
    fill(module, 5.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with average.applied():
        assert (module.weight == 1).all()
    assert (module.weight == 5).all()
    with pytest.raises(ZeroDivisionError), average.applied():
        raise ZeroDivisionError
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert (average.tensors()["weight"] == 1).all()


def test_is_kept_in_float32() -> None:
    """In bf16, 1 + 1/256 is 1 again: an average kept there would stand still."""
    module = filled(1.0, torch.bfloat16)
    average = EMA(dict(module.named_parameters()), 0.999)
    average.updates = 10_000
    fill(module, 2.0)
    for _ in range(10):
        average.update()
    value = average.tensors()["weight"]
    assert value.dtype is torch.float32
    assert torch.allclose(value, torch.full((2, 3), 2 - 0.999**10), atol=1e-4)


def test_loading_fills_the_tensors_in_place() -> None:
    module = filled(1.0)
    average = EMA(dict(module.named_parameters()), 0.5)
    average.tensors()["weight"].fill_(9.0)
    with average.applied():
        assert (module.weight == 9).all()
