"""Costs counted on the meta device, against the bars of the design and against real counters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.nets.attention import set_attention
from stack.nets.published import new_unet, unet_config
from stack.train.build_cost import count_activations, count_flops
from tests.pipeline import ROOT

RECIPE = str(ROOT / "recipes/coyo_js.yaml")


def recipe(*overrides: str) -> DistillRecipe:
    found = load_recipe(RECIPE, overrides)
    assert isinstance(found, DistillRecipe)
    return found


@pytest.mark.parametrize(("gamma", "critic", "joint"), [(0, 4.7, 10.1), (1, 5.03, 10.42)])
def test_steps_at_full_size_cost_no_more_forwards_than_they_must(gamma, critic, joint):
    flops = count_flops(recipe(f"gan.r1_gamma={gamma}"), unet_config("sd15"))
    assert flops.in_forwards("student") <= 6.45
    assert flops.in_forwards("critic") <= critic
    assert flops.in_forwards("joint") <= joint


def test_steps_of_the_small_network() -> None:
    flops = count_flops(recipe("gan.r1_gamma=0"), unet_config("small"))
    assert 2 * flops.student == pytest.approx(199e9, rel=0.05)
    assert 2 * flops.critic == pytest.approx(142e9, rel=0.05)


def test_a_forward_is_what_a_counter_sees_on_real_tensors() -> None:
    config = unet_config("small") | {"sample_size": 16}
    unet = new_unet(config, "cpu")
    set_attention(unet, "math", torch.device("cpu"))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 77, 32))
    expected = counter.get_total_flops()
    assert count_flops(recipe("gan.resolutions=[2]"), config).forward == pytest.approx(
        expected, rel=0.02
    )


def test_the_network_has_the_parameters_of_the_published_one() -> None:
    unet = new_unet(unet_config("sd15"))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964


def activations(batch: int, **compute: Any) -> int:
    fields = [f"compute.{name}={value}" for name, value in compute.items()]
    config = unet_config("small") | {"sample_size": 32, "layers_per_block": 1}
    return count_activations(recipe("gan.resolutions=[4]", *fields), config, batch)


def test_activations_grow_with_the_batch_and_shrink_with_recomputation() -> None:
    kept = {mode: activations(8, checkpointing=mode) for mode in ("none", "selective", "full")}
    assert kept["full"] < kept["selective"] < kept["none"]
    one, two, three = (activations(n) for n in (8, 16, 24))
    assert three - two == pytest.approx(two - one, rel=0.02)
    # The matrix of 1024 x 1024 weights for every head is what flash attention does without.
    assert activations(1, attention="math") > 1.5 * activations(1)


@pytest.mark.parametrize("features", ["teacher", "fake", "fake_joint"])
def test_an_iteration_keeps_to_one_device(features: str) -> None:
    """On the meta device a tensor of another one is an error, as it would be on a GPU."""
    flops = count_flops(recipe(f"gan.features={features}"), unet_config("small"))
    assert flops.joint == flops.student + flops.critic - flops.forward
