"""Samplers of both kinds: where they compute, what decides their pictures, other settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stack.diffusion.heun import CIFAR10_CHURN, IMAGENET64_CHURN
from stack.diffusion.karras import KarrasSchedule
from stack.diffusion.schedule import DiscreteSchedule
from stack.nets.edm import EdmDenoiser, edm_network
from stack.nets.edm_blocks import EdmConfig
from stack.nets.sd15 import SDDenoiser
from stack.sample.class_to_image import ClassToImage, _tell_of_no_classes
from stack.sample.generate import Sampler, TextToImage, generate
from stack.util.errors import UserError
from tests.edm_world import CLASSES, CONFIG, random_network
from tests.tiny import WIDTH, tiny_denoiser, tiny_unet

CPU, META = torch.device("cpu"), torch.device("meta")
TOKENS = 5


class Text(nn.Module):
    """States that are the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.null_ids = torch.zeros(TOKENS, dtype=torch.int64)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, int]:
        return torch.tensor([[len(caption)] * TOKENS for caption in captions]), 0

    def forward(self, ids: Tensor) -> Tensor:
        return ids[..., None].expand(-1, -1, WIDTH) / 10


class Vae(nn.Module):
    """Pictures are three of the latents' channels."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3]


class LaidElsewhere:
    """A denoiser that says where it was called; its parameters are not where it computes, as those
    of a network cut over ranks and kept on the CPU."""

    asked: set[str]

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        self.asked = {x_t.device.type, t.device.type, c.device.type}
        return 0 * x_t.float()

    def denoise(self, x: Tensor, sigma: Tensor, c: Tensor, augment: None = None) -> Tensor:
        return self.forward(x, sigma, c)


class EdmElsewhere(LaidElsewhere, EdmDenoiser):
    pass


class SDElsewhere(LaidElsewhere, SDDenoiser):
    pass


def classes(config: EdmConfig = CONFIG) -> ClassToImage:
    return ClassToImage(EdmDenoiser(random_network(config), KarrasSchedule()).eval(), CPU, 3)


def captions() -> TextToImage:
    torch.manual_seed(0)
    return TextToImage(tiny_denoiser(), Text(), Vae(), CPU, 3, 1.5)  # type: ignore[arg-type]


MADE = {"classes": classes, "captions": captions}
CONDITIONS = ["0", "1", "2"]
every_kind = pytest.mark.parametrize("kind", MADE)


@pytest.mark.parametrize("solver", ["ode", "sde"])
@pytest.mark.parametrize("steps", [1, 3])
def test_tensors_are_made_where_it_computes(steps: int, solver: Any) -> None:
    edm = EdmElsewhere(edm_network(CONFIG), KarrasSchedule()).to("meta")
    unet = SDElsewhere(tiny_unet(), DiscreteSchedule.scaled_linear(), "epsilon").to("meta")
    text, vae = Text().to("meta"), Vae().to("meta")
    samplers: list[Sampler] = [
        ClassToImage(edm, CPU, steps),
        TextToImage(unet, text, vae, CPU, steps, 1.5),  # type: ignore[arg-type]
    ]
    for sampler, network in zip(samplers, (edm, unet), strict=True):
        images = generate(sampler.with_settings(kind=solver), CONDITIONS, seed=0, batch=2)
        assert images.device == CPU
        assert network.asked == {"cpu"}


@every_kind
def test_facts_are_those_of_any_device(kind: str) -> None:
    sampler = MADE[kind]()
    facts = sampler.facts()
    assert replace(sampler, device=META).facts() == facts
    assert not any(isinstance(value, torch.device) for value in facts.values())


@every_kind
def test_facts_change_with_all_that_decides_a_picture(kind: str) -> None:
    sampler = MADE[kind]()
    sampler.denoiser.bf16 = True
    half = sampler.facts()
    sampler.denoiser.bf16 = False
    found = [half, sampler.facts()]
    found += [sampler.with_settings(steps=4).facts(), sampler.with_settings(kind="sde").facts()]
    with torch.no_grad():
        next(sampler.denoiser.parameters()).add_(1)
    found.append(sampler.facts())
    sampler.denoiser.schedule = (  # type: ignore[assignment]
        KarrasSchedule(500) if kind == "classes" else DiscreteSchedule.scaled_linear(steps=500)
    )
    found.append(sampler.facts())
    assert all(one != other for i, one in enumerate(found) for other in found[:i])


@every_kind
def test_settings_that_are_not_given_stay(kind: str) -> None:
    sampler = MADE[kind]()
    assert sampler.with_settings() == sampler
    assert sampler.with_settings(kind="ode") == sampler
    sde = sampler.with_settings(kind="sde")
    assert sde.with_settings(steps=sampler.steps) == sde
    assert sde.with_settings(kind="ode") == sampler
    assert sampler.with_settings(steps=7).nfe == (13 if kind == "classes" else 14)


@every_kind
def test_the_sde_draws_other_pictures_of_the_same_keys(kind: str) -> None:
    """Each a function of its index and the seed alone, to the rounding of other batches."""
    sde = MADE[kind]().with_settings(steps=8, kind="sde")
    pictures = generate(sde, CONDITIONS, seed=0, batch=3)
    alone = generate(sde, CONDITIONS, seed=0, batch=1)
    assert (pictures.int() - alone.int()).abs().max() <= 1
    assert not torch.equal(pictures, generate(sde, CONDITIONS, seed=1, batch=3))
    ode = generate(sde.with_settings(kind="ode"), CONDITIONS, seed=0, batch=3)
    assert not torch.equal(pictures, ode)


def test_what_people_are_told() -> None:
    assert classes().told == "Heun, 3 steps"
    assert classes().with_settings(kind="sde").told == "stochastic Heun, 3 steps, S_churn 30"
    assert captions().told == "DDIM, 3 steps, guidance 1.5"
    told = captions().with_settings(kind="sde", steps=5, guidance=2.0).told
    assert told == "ancestral, 5 steps, guidance 2"


def test_an_edm_network_is_churned_as_the_published_one_of_its_architecture() -> None:
    adm = CONFIG.model_copy(update={"architecture": "adm"})
    assert classes().with_settings(kind="sde").churn == CIFAR10_CHURN
    assert classes(adm).with_settings(kind="sde").churn == IMAGENET64_CHURN


def test_without_classes_their_numbers_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Which is told; captions are refused."""
    _tell_of_no_classes.cache_clear()
    blind = classes(CONFIG.model_copy(update={"label_dim": 0}))
    assert (blind.classes, classes().classes, captions().classes) == (0, CLASSES, None)
    empty = generate(blind, [""] * 3, seed=0, batch=3)
    assert not caplog.records
    numbered = generate(blind, ["0", "1", "200"], seed=0, batch=3)
    assert torch.equal(empty, numbered)
    assert [record.message for record in caplog.records] == [
        "the network has no classes: the number of one changes nothing"
    ]
    with pytest.raises(UserError) as error:
        generate(blind, ["a dog"], seed=0, batch=3)
    told = "class: 'a dog': the network has none; its condition is the empty one"
    assert str(error.value) == told


@pytest.mark.parametrize("condition", ["", "3", "-1", "a dog"])
def test_a_class_that_is_not_there(condition: str) -> None:
    with pytest.raises(UserError) as error:
        generate(classes(), [condition], seed=0, batch=1)
    assert str(error.value) == f"class: {condition!r} is not one of 0 to {CLASSES - 1}"


def test_an_edm_network_has_no_guidance() -> None:
    with pytest.raises(UserError, match="--guidance: 2: an EDM network has none"):
        classes().with_settings(guidance=2.0)
