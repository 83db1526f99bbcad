"""The autoencoder in bfloat16: what it encodes stays as it is, what it decodes looks as it did."""

from __future__ import annotations

import copy

import pytest
import torch

from stack.nets.published import SD15_FROZEN
from stack.nets.vae import DECODING, Autoencoder, to_uint8
from stack.parallel.memory import PeakBytes
from stack.train.pretrain import new_vae


@torch.no_grad()
def test_only_decoding_is_in_bfloat16() -> None:
    torch.manual_seed(0)
    plain = new_vae(16, channels=(8, 8), layers=1, groups=4)
    half, full = Autoencoder(copy.deepcopy(plain), bf16=True), Autoencoder(plain)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = full.encode_mean(images)
    assert torch.equal(half.encode_mean(images), latents)
    found, exact = half.decode(latents), full.decode(latents)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    apart = (to_uint8(found).int() - to_uint8(exact).int()).abs()
    assert apart.float().mean() < 1
    assert apart.max() <= 8


@pytest.mark.parametrize("precision", DECODING)
@torch.no_grad()
def test_decoding_takes_what_plans_count(precision: str) -> None:
    """Stable Diffusion's own, on the meta device."""
    with torch.device("meta"):
        vae = new_vae(512, channels=(128, 256, 512, 512), layers=2, groups=32)
    model = Autoencoder(vae, bf16=precision == "bf16").requires_grad_(False)
    assert sum(part.numel() for part in model.parameters()) == SD15_FROZEN["autoencoder"]
    with PeakBytes(model.parameters(), meta=True) as memory:
        start = memory.live
        model.decode(torch.empty(2, 4, 64, 64, device="meta"))
    assert memory.peak - start == pytest.approx(2 * 64 * 64 * DECODING[precision], rel=0.01)
