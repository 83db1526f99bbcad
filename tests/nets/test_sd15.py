"""The SD denoiser against stock diffusers, and what its features may cost."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from stack.diffusion.parameterization import predict_x0
from stack.diffusion.schedule import DiscreteSchedule
from stack.nets.heads import ConvHead, MultiHead, VectorHead
from stack.nets.sd15 import SDDenoiser
from stack.util.errors import UserError
from tests.tiny import WIDTH, tiny_denoiser, tiny_unet

SCHEDULE = DiscreteSchedule.scaled_linear()


def inputs(batch: int = 3, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, times and all 77 token states."""
    torch.manual_seed(1)
    t = torch.tensor([999, 500, 0])[:batch]
    return torch.randn(batch, 4, size, size), t, torch.randn(batch, 77, WIDTH)


def digits_unet() -> UNet2DConditionModel:
    """Cross-attention in the lower level alone."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


LAYOUTS = {
    "two levels": (tiny_unet, 4),
    "four levels, as SD": (lambda: tiny_unet((8, 8, 16, 16), size=8), 8),
    "attention in the lower level": (digits_unet, 4),
}


@pytest.mark.parametrize("parameterization", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_x0_is_that_of_the_stock_unet_bit_for_bit(layout: str, parameterization: str) -> None:
    """Stock Stable Diffusion passes the 77 states and no mask."""
    make, size = LAYOUTS[layout]
    unet = make()
    x_t, t, c = inputs(size=size)
    denoiser = SDDenoiser(unet, SCHEDULE, parameterization)
    stock = unet(x_t, t, c).sample
    x0 = denoiser(x_t, t, c)
    assert x0.dtype == torch.float32
    assert torch.equal(x0, predict_x0(stock, x_t, t, SCHEDULE, parameterization))


@pytest.mark.parametrize("parameterization", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_a_call_at_the_last_time_is_one_trailing_step_of_diffusers(parameterization: str) -> None:
    denoiser = tiny_denoiser(parameterization)
    x_t, _, c = inputs()
    stock = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=parameterization,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    stock.set_timesteps(1)
    step = stock.step(denoiser.unet(x_t, 999, c).sample, stock.timesteps[0], x_t).prev_sample
    x0 = denoiser(x_t, torch.full((3,), 999), c)
    torch.testing.assert_close(x0, step, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("resolutions", [(4,), (2,), (4, 2), (2, 4)])
def test_features_and_x0_from_one_pass_are_those_of_two(resolutions: tuple[int, ...]) -> None:
    denoiser = tiny_denoiser(resolutions=resolutions)
    x_t, t, c = inputs()
    x0, features = denoiser.x0_and_features(x_t, t, c)
    assert torch.equal(x0, denoiser(x_t, t, c))
    assert not x0.requires_grad
    alone = denoiser.features(x_t, t, c)
    assert [f.shape[-1] for f in features] == list(resolutions)
    assert [f.shape[1] for f in features] == denoiser.feature_channels
    assert all(torch.equal(one, other) for one, other in zip(features, alone, strict=True))
    assert all(feature.requires_grad for feature in features)


def test_features_carry_gradient_to_x_t() -> None:
    denoiser = tiny_denoiser().requires_grad_(False)
    x_t, t, c = inputs()
    x_t.requires_grad_()
    sum(f.sum() for f in denoiser.x0_and_features(x_t, t, c)[1]).backward()
    assert x_t.grad is not None
    assert x_t.grad.abs().sum() > 0


def count_calls(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_features_stop_after_the_deepest_one() -> None:
    unet = tiny_unet((8, 8, 16, 16), size=8)
    denoiser = SDDenoiser(unet, SCHEDULE, "epsilon", resolutions=(4,))
    stages = [*unet.down_blocks, unet.mid_block, *unet.up_blocks, unet.conv_out]
    calls = [count_calls(stage) for stage in stages]
    denoiser.features(*inputs(size=8))
    # The level of size 4 is the second; the first value below it ends the pass.
    assert [len(c) for c in calls] == [1, 1] + [0] * (len(stages) - 2)


def test_features_never_call_the_decoder() -> None:
    denoiser = tiny_denoiser(resolutions=(2,))
    calls = [count_calls(stage) for stage in (*denoiser.unet.up_blocks, denoiser.unet.conv_out)]
    denoiser.features(*inputs())
    assert not any(calls)


def test_the_decoder_of_x0_and_features_keeps_no_graph() -> None:
    denoiser = tiny_denoiser()
    kept: list[bool] = []
    for stage in denoiser.unet.up_blocks:
        stage.register_forward_hook(lambda _m, _i, out: kept.append(out.requires_grad))
    denoiser.x0_and_features(*inputs())
    assert kept == [False, False]


def test_unknown_resolution_is_refused() -> None:
    with pytest.raises(UserError, match=r"gan\.resolutions: 3: the UNet has .* 4, 2"):
        tiny_denoiser(resolutions=(3,))


def test_float_times_are_refused() -> None:
    x_t, t, c = inputs()
    with pytest.raises(TypeError, match="times are integers"):
        tiny_denoiser()(x_t, t + 0.5, c)


def test_bf16_network_gives_float32_x0() -> None:
    x_t, t, c = inputs()
    half, full = (tiny_denoiser(bf16=bf16)(x_t, t, c) for bf16 in (True, False))
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)


def test_blocks_are_distinct_and_hold_most_weights() -> None:
    denoiser = tiny_denoiser()
    blocks = list(denoiser.blocks())
    inside = [id(p) for block in blocks for p in block.parameters()]
    assert len(set(map(id, blocks))) == len(blocks) == 8 + 4  # ResNet and transformer blocks
    assert len(inside) == len(set(inside))
    sizes = {id(p): p.numel() for p in denoiser.parameters()}
    assert sum(sizes[i] for i in inside) > 0.8 * sum(sizes.values())


@pytest.mark.parametrize(("channels", "width"), [(4, 6), (320, 48), (640, 64), (1280, 256)])
def test_heads_take_any_channel_width(channels: int, width: int) -> None:
    head = ConvHead(channels, width)
    for size in (1, 8):
        assert head(torch.randn(2, channels, size, size)).shape == (2, 1)


def test_one_logit_per_feature_map() -> None:
    denoiser = tiny_denoiser()
    heads = MultiHead([ConvHead(channels, 8) for channels in denoiser.feature_channels])
    assert heads(denoiser.features(*inputs())).shape == (3, 2)
    assert MultiHead([VectorHead(5, 8)])([torch.randn(3, 5)]).shape == (3, 1)


def test_heads_alone_learn_from_channels_last_features() -> None:
    """As the discriminator's own loss trains them, on features without gradient."""
    head = ConvHead(8, 8)
    features = torch.randn(3, 8, 4, 4).to(memory_format=torch.channels_last)
    MultiHead([head])([features]).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_bf16_heads_give_float32_logits() -> None:
    features = [torch.randn(3, 8, 4, 4)]
    torch.manual_seed(0)
    heads = MultiHead([ConvHead(8, 8)], bf16=True)
    assert heads(features).dtype == torch.float32
