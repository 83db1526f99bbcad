"""A distillation of a small UNet of Stable Diffusion's build, the same on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.diffusion.schedule import DiscreteSchedule
from stack.fdistill.algorithm import Batch
from stack.nets.published import TOKENS, UNETS, new_unet
from stack.parallel.mesh import Layout
from stack.train.build_algorithm import assemble
from stack.train.build_sd import sd_networks
from stack.train.distill import DistillTask
from tests.forked import ROOT

RECIPE = str(ROOT / "recipes/coyo_js.yaml")


def config_of(size: int = 32, **changed: Any) -> dict[str, Any]:
    """The small UNet's, for latents of ``size``."""
    return UNETS["small"] | {"sample_size": size} | changed


def two_levels(size: int = 16, **changed: Any) -> dict[str, Any]:
    """A UNet of two levels, one layer each: a third of the small one's operators."""
    levels = {
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return config_of(size, **levels | changed)


def recipe_of(*overrides: str, size: int = 32) -> DistillRecipe:
    """The main recipe with a head at an eighth of ``size``."""
    plain = ["precision=fp32", "parallel={backend: none}", f"gan.resolutions=[{size // 8}]"]
    recipe = load_recipe(RECIPE, [*plain, *overrides])
    assert isinstance(recipe, DistillRecipe)
    return recipe


def batch_of(config: dict[str, Any], device: torch.device, samples: int = 2) -> Batch:
    random = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(samples, *shape, generator=random).to(device)

    size, width = config["sample_size"], config["cross_attention_dim"]
    positions = torch.arange(samples, device=device)
    return Batch(positions, normal(4, size, size), normal(TOKENS, width), normal(TOKENS, width))


def task_of(
    recipe: DistillRecipe, config: dict[str, Any], device: torch.device, *, apart: float = 0.1
) -> DistillTask:
    """Networks of the same random weights whatever the device, v-prediction.

    Args:
        apart: noise on the fake score's weights, in standard deviations of each tensor.
    """
    torch.manual_seed(0)
    unet = new_unet(config, "cpu")
    layout = Layout(device=device, bf16=recipe.precision == "bf16")
    schedule = DiscreteSchedule.scaled_linear()
    networks = sd_networks(recipe, unet, schedule, "v_prediction", layout)
    assert isinstance(networks.fake, nn.Module)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in networks.fake.parameters():
            if weight.numel() > 1:
                noise = torch.randn(weight.shape, generator=random).to(device)
                weight += apart * weight.std() * noise
    return assemble(recipe, layout, networks, lambda *_: None, lambda: 0.0)


def gradient(module: nn.Module) -> Tensor:
    """All gradients in one vector, on the CPU."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).cpu()
