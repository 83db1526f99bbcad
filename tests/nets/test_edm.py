"""The EDM denoiser: preconditioning, features, classes, precision, and that it learns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from stack.diffusion.heun import heun
from stack.diffusion.karras import KarrasSchedule, edm_loss_weight, karras_sigmas, precondition
from stack.diffusion.schedule import add_noise, per_sample
from stack.nets.edm import EdmDenoiser, edm_network
from stack.nets.edm_blocks import CIFAR10, IMAGENET64, Block, EdmConfig
from stack.nets.heads import ConvHead, MultiHead
from stack.util.errors import UserError

SCHEDULE = KarrasSchedule()
SMALL = {"img_resolution": 16, "model_channels": 8, "num_blocks": 1, "label_dim": 4}
CONFIGS = {
    "ddpm++": CIFAR10.model_copy(update=SMALL | {"attn_resolutions": (8,)}),
    "ddpm++, no classes": CIFAR10.model_copy(update=SMALL | {"label_dim": 0, "augment_dim": 0}),
    "adm": IMAGENET64.model_copy(update=SMALL | {"channel_mult": (1, 2, 3), "augment_dim": 9}),
    "adm, no classes": IMAGENET64.model_copy(
        update=SMALL | {"channel_mult": (1, 2, 3), "label_dim": 0, "attn_resolutions": (8, 4)}
    ),
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def denoiser(config: EdmConfig, **options: object) -> EdmDenoiser:
    """With weights such that every part has its say: at first a branch's last layer is zero."""
    torch.manual_seed(0)
    network = edm_network(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    options = {"resolutions": (16, 8, 4)} | options
    return EdmDenoiser(network, SCHEDULE, **options).eval()  # type: ignore[arg-type]


def inputs(config: EdmConfig) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, times and classes of three samples."""
    torch.manual_seed(1)
    t = torch.tensor([0, 500, 999])
    x_t = add_noise(0.5 * torch.randn(3, 3, 16, 16), torch.randn(3, 3, 16, 16), t, SCHEDULE)
    return x_t, t, torch.eye(4)[[0, 2, 3], : config.label_dim]


@every_config
@torch.no_grad()
def test_x0_is_preconditioned(name: str) -> None:
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (eq. 7)."""
    network = denoiser(CONFIGS[name])
    x_t, t, c = inputs(CONFIGS[name])
    scales = precondition(SCHEDULE.sigma(t))
    skip, out, into = (per_sample(scale, x_t) for scale in scales[:3])
    emb = network.model.embed(scales.noise, c, None)
    output = network.model.decode(list(network.model.hidden(into * x_t, emb)), emb)
    x0 = network(x_t, t, c)
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0, skip * x_t + out * output)


@every_config
@torch.no_grad()
def test_x0_at_a_time_is_that_at_its_sigma(name: str) -> None:
    network = denoiser(CONFIGS[name])
    x_t, t, c = inputs(CONFIGS[name])
    for sigma in (SCHEDULE.sigma(t), SCHEDULE.sigmas[t]):
        assert torch.equal(network.denoise(x_t, sigma, c), network(x_t, t, c))
    assert torch.equal(network.denoise(x_t.double(), sigma, c), network(x_t, t, c))


@torch.no_grad()
def test_at_first_little_more_than_the_skip_is_left() -> None:
    """The last layers start at zero or near it, so F does and x0 starts as c_skip x."""
    for name in ("ddpm++", "adm"):
        network = EdmDenoiser(edm_network(CONFIGS[name]), SCHEDULE)
        x_t, t, c = inputs(CONFIGS[name])
        skip = per_sample(precondition(SCHEDULE.sigma(t)).skip, x_t)
        torch.testing.assert_close(network(x_t, t, c), skip * x_t, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("resolutions", [(16,), (4,), (16, 8, 4), (4, 8)])
@every_config
def test_features_and_x0_from_one_pass_are_those_of_two(
    name: str, resolutions: tuple[int, ...]
) -> None:
    network = denoiser(CONFIGS[name], resolutions=resolutions)
    x_t, t, c = inputs(CONFIGS[name])
    x0, features = network.x0_and_features(x_t, t, c)
    assert torch.equal(x0, network(x_t, t, c))
    assert not x0.requires_grad
    alone = network.features(x_t, t, c)
    assert [f.shape[-1] for f in features] == list(resolutions)
    assert [f.shape[1] for f in features] == network.feature_channels
    assert all(torch.equal(one, other) for one, other in zip(features, alone, strict=True))
    assert all(feature.requires_grad for feature in features)
    heads = MultiHead([ConvHead(channels, 8) for channels in network.feature_channels])
    assert heads(features).shape == (3, len(resolutions))


def test_features_are_the_deepest_states_of_the_encoder_and_stop_there() -> None:
    network = denoiser(CONFIGS["ddpm++"], resolutions=(8,))
    states: dict[str, Tensor] = {}

    def watch(part: str, name: str, layer: torch.nn.Module) -> None:
        def note(_module: object, _inputs: object, output: Tensor) -> None:
            states[f"{part}.{name}"] = output

        layer.register_forward_hook(note)

    for part, layers in (("enc", network.model.enc), ("dec", network.model.dec)):
        for name, layer in layers.items():
            watch(part, name, layer)
    (feature,) = network.features(*inputs(CONFIGS["ddpm++"]))
    # The first state below the size asked for ends the pass.
    expected = ("16x16_conv", "16x16_block0", "8x8_down", "8x8_block0", "4x4_down")
    assert list(states) == [f"enc.{name}" for name in expected]
    assert torch.equal(feature, states["enc.8x8_block0"])


def test_features_carry_gradient_to_x_t() -> None:
    network = denoiser(CONFIGS["adm"]).requires_grad_(False)
    x_t, t, c = inputs(CONFIGS["adm"])
    x_t.requires_grad_()
    sum(f.sum() for f in network.x0_and_features(x_t, t, c)[1]).backward()
    assert x_t.grad is not None
    assert x_t.grad.flatten(1).abs().sum(1).min() > 0


def test_the_decoder_of_x0_and_features_keeps_no_graph() -> None:
    network = denoiser(CONFIGS["adm"])
    kept: list[bool] = []
    for layer in network.model.dec.values():
        layer.register_forward_hook(lambda _m, _i, out: kept.append(out.requires_grad))
    network.x0_and_features(*inputs(CONFIGS["adm"]))
    assert kept
    assert not any(kept)


def test_unknown_resolution_is_refused() -> None:
    with pytest.raises(UserError, match=r"gan\.resolutions: 5: the network has .* 16, 8, 4"):
        denoiser(CONFIGS["adm"], resolutions=(5,))


@pytest.mark.parametrize("name", ["ddpm++", "adm"])
@torch.no_grad()
def test_a_class_is_of_its_own_row(name: str) -> None:
    network = denoiser(CONFIGS[name])
    x_t, t, c = inputs(CONFIGS[name])
    other = c.clone()
    other[1] = torch.eye(4)[0]
    same = (network(x_t, t, c) == network(x_t, t, other)).flatten(1).all(1)
    assert same.tolist() == [True, False, True]
    none = network(x_t, t, torch.zeros_like(c))
    assert not torch.equal(none, network(x_t, t, c))


@pytest.mark.parametrize("name", ["ddpm++", "adm"])
@torch.no_grad()
def test_no_augmentation_is_that_of_labels_zero(name: str) -> None:
    network = denoiser(CONFIGS[name])
    x_t, t, c = inputs(CONFIGS[name])
    sigma, augment = SCHEDULE.sigma(t), torch.zeros(3, 9)
    assert torch.equal(network.denoise(x_t, sigma, c, augment), network(x_t, t, c))
    assert not torch.equal(network.denoise(x_t, sigma, c, augment + 1), network(x_t, t, c))


@every_config
def test_gradient_reaches_every_weight(name: str) -> None:
    network = denoiser(CONFIGS[name])
    x_t, t, c = inputs(CONFIGS[name])
    augment = torch.ones(3, 9) if CONFIGS[name].augment_dim else None
    network.denoise(x_t, SCHEDULE.sigma(t), c, augment).square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("channels", [4, 12, 20, 60, 100])
def test_any_width_that_four_divides(channels: int) -> None:
    for name in ("ddpm++", "adm"):
        config = CONFIGS[name].model_copy(update={"model_channels": channels})
        assert EdmDenoiser(edm_network(config), SCHEDULE)(*inputs(config)).shape == (3, 3, 16, 16)


def test_dropout_is_of_training_alone() -> None:
    x_t, t, c = inputs(CONFIGS["adm"])
    network = EdmDenoiser(edm_network(CONFIGS["adm"], dropout=0.5), SCHEDULE)
    torch.nn.init.normal_(network.model.out_conv.weight)
    torch.nn.init.normal_(network.model.enc["16x16_block0"].conv1.weight)
    assert not torch.equal(network(x_t, t, c), network(x_t, t, c))
    assert torch.equal(network.eval()(x_t, t, c), network(x_t, t, c))


@pytest.mark.parametrize("name", ["ddpm++", "adm"])
@torch.no_grad()
def test_bf16_network_gives_float32_x0(name: str) -> None:
    x_t, t, c = inputs(CONFIGS[name])
    half, full = (denoiser(CONFIGS[name], bf16=bf16)(x_t, t, c) for bf16 in (True, False))
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)
    stored = denoiser(CONFIGS[name], bf16=True).to(torch.bfloat16)
    torch.testing.assert_close(stored(x_t, t, c), full, rtol=0.1, atol=0.1)


@torch.no_grad()
def test_attention_is_that_of_the_formula() -> None:
    """Channels of queries, keys and values lie side by side, head by head; heads have 64."""
    config = IMAGENET64.model_copy(update=SMALL | {"model_channels": 128, "channel_mult": (1,)})
    block = denoiser(config, resolutions=()).model.dec["16x16_in0"]
    assert (type(block), block.heads) == (Block, 2)
    x = torch.randn(2, 128, 3, 3)
    q, k, v = block.qkv(block.norm2(x)).view(2, 2, 64, 3, 9).unbind(3)
    weights = (torch.einsum("bhdq,bhdk->bhqk", q, k) / 8).softmax(-1)
    mixed = torch.einsum("bhqk,bhdk->bhdq", weights, v).reshape(2, 128, 3, 3)
    torch.testing.assert_close(block._attention(x), block.proj(mixed), rtol=1e-4, atol=1e-4)


def test_an_error_of_the_network_is_weighed_in_its_own_target() -> None:
    """A unit change of F costs one unit of loss at every t."""
    network = denoiser(CONFIGS["adm"])
    x_t, t, c = inputs(CONFIGS["adm"])
    with torch.no_grad():
        before = network(x_t, t, c)
        network.model.out_conv.bias += 1
        change = (network(x_t, t, c) - before).square().flatten(1).mean(1)
    torch.testing.assert_close(network.loss_weight(t) * change, torch.ones(3), rtol=1e-3, atol=0)
    assert torch.equal(network.loss_weight(t), edm_loss_weight(SCHEDULE.sigma(t)))


def test_blocks_are_distinct_and_hold_most_weights() -> None:
    network = denoiser(CONFIGS["ddpm++"])
    blocks = list(network.blocks())
    assert len({id(block) for block in blocks}) == len(blocks) == 5 + 10
    held = sum(p.numel() for block in blocks for p in block.parameters())
    assert held > 0.8 * sum(p.numel() for p in network.parameters())


@every_config
def test_runs_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        network = EdmDenoiser(edm_network(CONFIGS[name]), SCHEDULE, resolutions=(8, 16))
        x_t, t = torch.empty(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64)
        c = torch.empty(2, CONFIGS[name].label_dim)
    assert network(x_t, t, c).shape == (2, 3, 16, 16)
    x0, features = network.x0_and_features(x_t, t, c)
    assert x0.shape == (2, 3, 16, 16)
    for found in (features, network.features(x_t, t, c)):
        shapes = zip(network.feature_channels, (8, 16), strict=True)
        assert [f.shape for f in found] == [(2, width, size, size) for width, size in shapes]
        assert all(f.is_meta for f in found)


POINTS = torch.tensor([-0.5, 0.5]).view(2, 1, 1, 1).expand(2, 3, 16, 16)
"""A picture for each of two classes."""


class Perfect(nn.Module):
    """F such that D is the only picture of the class, whatever x and sigma are."""

    config = CIFAR10.model_copy(update=SMALL)

    def embed(self, noise: Tensor, c: Tensor, augment: Tensor | None) -> Tensor:
        return torch.cat((noise[:, None], c), 1)

    def hidden(self, x: Tensor, emb: Tensor) -> Iterator[Tensor]:
        yield x

    def decode(self, hidden: list[Tensor], emb: Tensor) -> Tensor:
        (x,), noise, c = hidden, emb[:, 0], emb[:, 1:]
        scales = precondition(per_sample((4 * noise).exp(), x))
        x0 = torch.einsum("bk,kchw->bchw", c, POINTS)
        return (x0 - scales.skip * x / scales.into) / scales.out


def test_a_perfect_network_has_no_loss_and_heun_returns_the_pictures() -> None:
    """Through the preconditioning there and back, so to rounding."""
    network, c = EdmDenoiser(Perfect(), SCHEDULE), torch.eye(2)  # type: ignore[arg-type]
    for sigma in (0.002, 0.3, 80.0):
        x = POINTS + sigma * torch.randn(POINTS.shape)
        x0 = network.denoise(x, torch.full((2,), sigma), c)
        torch.testing.assert_close(x0, POINTS, rtol=0, atol=1e-4)
    made = heun(lambda x, s: network.denoise(x, s, c), torch.randn(2, 3, 16, 16), karras_sigmas(18))
    torch.testing.assert_close(made.float(), POINTS, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ddpm++", "adm"])
def test_a_step_down_the_loss_gains_what_its_gradient_says(name: str) -> None:
    """Of a last layer EDM's loss is a quadratic function: along its gradient g a parabola, which
    falls from L by |g|^4 / 4a to its lowest point, and is at L again twice as far."""
    network, c = denoiser(CONFIGS[name]), torch.eye(4)[[0, 1]].repeat(4, 1)
    sigma = torch.logspace(-2, 1, 8)
    x0 = POINTS.repeat(4, 1, 1, 1)
    x = x0 + per_sample(sigma, x0) * torch.randn(x0.shape)

    def loss() -> Tensor:
        error = (network.denoise(x, sigma, c) - x0).square().flatten(1).mean(1)
        return (edm_loss_weight(sigma) * error).mean()

    last = network.model.dec["16x16_aux_conv"] if name == "ddpm++" else network.model.out_conv
    weights = list(last.parameters())
    start, begun = loss(), [weight.detach().clone() for weight in weights]
    gradient = torch.autograd.grad(start, weights)
    slope = sum(part.square().sum() for part in gradient)

    @torch.no_grad()
    def at(distance: Tensor | float) -> Tensor:
        for weight, first, part in zip(weights, begun, gradient, strict=True):
            weight.copy_(first - distance * part)
        return loss()

    curvature = at(1.0) - start.detach() + slope
    lowest = slope / (2 * curvature)
    fall = slope**2 / (4 * curvature)
    torch.testing.assert_close(at(lowest), start - fall, rtol=1e-3, atol=0)
    torch.testing.assert_close(at(2 * lowest), start, rtol=1e-3, atol=0)
    assert fall > 0.1 * start
