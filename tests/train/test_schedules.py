"""Learning rates, clipping and the optimizer around one network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stack.parallel.local import LocalWeights
from stack.parallel.mesh import Layout
from stack.train.optim import adam_weights, lr_factor

FACTORS = [
    # decay, warmup, total, step, share of the peak
    ("constant", 0, 10, 0, 1.0),
    ("constant", 0, 10, 99, 1.0),
    ("constant", 4, 10, 0, 0.25),
    ("constant", 4, 10, 1, 0.5),
    ("constant", 4, 10, 3, 1.0),
    ("constant", 4, 10, 4, 1.0),
    ("constant", 20, 10, 9, 0.5),
    ("linear", 0, 10, 0, 1.0),
    ("linear", 0, 10, 5, 0.5),
    ("linear", 0, 10, 9, 0.1),
    ("linear", 0, 10, 10, 0.0),
    ("linear", 0, 10, 11, 0.0),
    ("linear", 2, 10, 1, 1.0),
    ("linear", 2, 10, 2, 1.0),
    ("linear", 2, 10, 6, 0.5),
    ("cosine", 0, 10, 0, 1.0),
    ("cosine", 0, 12, 4, 0.75),
    ("cosine", 0, 10, 5, 0.5),
    ("cosine", 0, 12, 8, 0.25),
    ("cosine", 2, 10, 6, 0.5),
    ("cosine", 2, 10, 10, 0.0),
    ("cosine", 0, 0, 0, 1.0),
]


@pytest.mark.parametrize(("decay", "warmup", "total", "step", "share"), FACTORS)
def test_lr_factor(decay: str, warmup: int, total: int, step: int, share: float) -> None:
    assert lr_factor(step, warmup=warmup, total=total, decay=decay) == pytest.approx(share)


def weights_of(module: nn.Module, **changed: object) -> LocalWeights:
    options = {
        "total": 8,
        "lr": 0.1,
        "betas": (0.0, 0.0),
        "eps": 1e-12,
        "weight_decay": 0.0,
        "clip": 1e9,
        "warmup": 4,
        "decay": "linear",
    }
    return adam_weights("net", module, Layout(), **{**options, **changed})


def test_every_step_has_the_rate_of_its_number() -> None:
    """Adam without memory moves each weight by exactly the learning rate."""
    module = nn.Linear(3, 1, bias=False)
    weights = weights_of(module)
    for step in range(8):
        before = module.weight.detach().clone()
        assert weights.lr == pytest.approx(0.1 * lr_factor(step, warmup=4, total=8, decay="linear"))
        rate = weights.lr
        weights.backward(module(torch.ones(1, 3)).sum())
        weights.step()
        assert torch.allclose(before - module.weight, torch.full((1, 3), rate), atol=1e-6)
    assert weights.steps == 8


def test_a_discarded_step_does_not_count() -> None:
    module = nn.Linear(3, 1)
    weights = weights_of(module)
    before = copy.deepcopy(module.state_dict())
    weights.backward(module(torch.ones(1, 3)).sum())
    weights.discard()
    assert weights.steps == 0
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_is_by_the_global_norm(limit: float) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    weights = weights_of(module, clip=limit)
    weights.backward(7 * module(torch.ones(2, 4)).sum())
    gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
    assert weights.clip() == pytest.approx(float(gradient.norm()))
    after = torch.cat([p.grad.flatten() for p in module.parameters()])
    expected = gradient * min(1.0, limit / float(gradient.norm()))
    assert torch.allclose(after, expected, rtol=1e-5)


def test_backward_adds_up() -> None:
    module = nn.Linear(2, 1, bias=False)
    weights = weights_of(module)
    for x in ([1.0, 2.0], [3.0, 4.0]):
        weights.backward(module(torch.tensor([x])).sum())
    assert module.weight.grad.tolist() == [[4.0, 6.0]]


def test_frozen_lets_no_gradient_in() -> None:
    module = nn.Linear(2, 1)
    weights = weights_of(module)
    x = torch.ones(1, 2, requires_grad=True)
    with weights.frozen():
        module(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in module.parameters())
    with pytest.raises(ZeroDivisionError), weights.frozen():
        raise ZeroDivisionError
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_state_is_complete_and_asking_for_it_changes_nothing() -> None:
    """Moments exist by name before the first step, as the first step would have made them."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    twin = copy.deepcopy(module)
    asked, plain = weights_of(module, betas=(0.5, 0.9)), weights_of(twin, betas=(0.5, 0.9))
    state = asked.tensors()
    parameters = [f"net.{name}" for name, _ in module.named_parameters()]
    moments = [
        f"net.optimizer.{name}.{key}"
        for name, _ in module.named_parameters()
        for key in ("step", "exp_avg", "exp_avg_sq")
    ]
    buffers = [f"net.{name}" for name, _ in module.named_buffers()]
    assert set(state) == {*parameters, *moments, *buffers}
    x = torch.randn(4, 3)
    for weights, net in ((asked, module), (plain, twin)):
        for _ in range(3):
            weights.backward(net(x).square().sum())
            weights.step()
    found, expected = asked.tensors(), plain.tensors()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["net.0.weight"].data_ptr() == module[0].weight.data_ptr(), "filled in place"
    assert float(found["net.optimizer.0.weight.step"]) == 3
