"""The autoencoder: in bfloat16 it encodes as it did, and decodes to what looks as it did; no step
of a distillation runs it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.nets.published import SD15_FROZEN
from stack.nets.vae import DECODING, Autoencoder, to_uint8
from stack.parallel.memory import PeakBytes
from stack.parallel.mesh import Layout
from stack.train.build_sd import build_sd
from stack.train.pretrain import new_vae
from tests.pipeline import World, recipe_fields, write_recipe


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


def test_a_step_touches_no_autoencoder(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a student's, nor a critic's; latents come from the shards, and only grids decode."""
    calls = []

    def noted(name: str) -> Any:
        real = getattr(AutoencoderKL, name)

        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return real(*args, **options)

        return call

    for name in ("encode", "decode"):
        monkeypatch.setattr(AutoencoderKL, name, noted(name))
    log = {"sample_every": 1, "prompts": ["a red zero", "a blue one"]}
    fields = recipe_fields(world, student_every=1, log=log)
    recipe = load_recipe(write_recipe(tmp_path, fields))
    assert isinstance(recipe, DistillRecipe)
    layout = Layout(device=torch.device("cpu"))
    job = build_sd(recipe, layout)
    for iteration in range(2):
        figures, stepped = job.task.iteration(iteration, job.source.take())
        assert stepped
        assert {"grad/student", "grad/fake"} <= figures.keys()
    assert calls == []
    job.task.sample(0, tmp_path)
    assert set(calls) == {"decode"}
