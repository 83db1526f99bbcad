"""Costs counted on the meta device, against the bars of the design and against real counters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from stack.config.load import load_recipe
from stack.config.schema import DistillRecipe
from stack.diffusion.karras import KarrasSchedule
from stack.nets.attention import set_attention
from stack.nets.edm import EdmDenoiser, edm_network
from stack.nets.edm_blocks import CIFAR10, IMAGENET64, EdmConfig
from stack.nets.published import SD15_FROZEN, new_unet, unet_config
from stack.train import build_cost
from stack.train.build_cost import (
    Imagined,
    count_activations,
    count_again,
    count_flops,
    count_sizes,
    unused_by_features,
)
from stack.train.build_subject import SD15_TEXT, edm_subject, sd_subject, text_flops
from stack.verbs.bench_step import Steps
from tests.forked import ROOT
from tests.train.small import two_levels

SD15, SMALL = (sd_subject(unet_config(name)) for name in ("sd15", "small"))


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted is counted here."""
    monkeypatch.setattr(build_cost, "_KNOWN", {})


def recipe(*overrides: str, name: str = "coyo_js") -> DistillRecipe:
    found = load_recipe(ROOT / f"recipes/{name}.yaml", overrides)
    assert isinstance(found, DistillRecipe)
    return found


@pytest.mark.parametrize(("gamma", "critic", "joint"), [(0, 4.7, 10.1), (1, 5.03, 10.42)])
def test_steps_at_full_size_cost_no_more_forwards_than_they_must(gamma, critic, joint):
    flops = count_flops(recipe(f"gan.r1_gamma={gamma}"), SD15)
    assert flops.in_forwards("student") <= 6.45
    assert flops.in_forwards("critic") <= critic
    assert flops.in_forwards("joint") <= joint


def test_steps_of_the_small_network() -> None:
    flops = count_flops(recipe("gan.r1_gamma=0"), SMALL)
    assert 2 * flops.student == pytest.approx(199e9, rel=0.05)
    assert 2 * flops.critic == pytest.approx(142e9, rel=0.05)


def test_a_forward_is_what_a_counter_sees_on_real_tensors() -> None:
    config = unet_config("small") | {"sample_size": 16}
    unet = new_unet(config, "cpu")
    set_attention(unet, "math", torch.device("cpu"))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 77, 32))
    expected = counter.get_total_flops()
    assert count_flops(recipe("gan.resolutions=[2]"), sd_subject(config)).forward == pytest.approx(
        expected, rel=0.02
    )


TWO_LEVELS = two_levels(8)


@pytest.mark.parametrize(
    ("checkpointing", "features"),
    [
        ("none", "teacher"),
        ("selective", "teacher"),
        ("full", "teacher"),
        ("full", "fake"),
        ("full", "fake_joint"),
    ],
)
def test_steps_are_what_a_counter_sees_on_real_tensors(checkpointing: str, features: str) -> None:
    """Of the student, of the critics, of both, and what the backward computes again."""
    fields = ["precision=fp32", "compute.attention=math", "gan.resolutions=[4]"]
    fields += [f"gan.features={features}", f"compute.checkpointing={checkpointing}"]
    made = recipe(*fields, "parallel={backend: none}")
    subject = sd_subject(TWO_LEVELS)
    steps, flops = Steps(made, subject, 2), count_flops(made, subject)
    again = count_again(made, subject)
    assert (again.student == 0) == (again.critic == 0) == (checkpointing != "full")
    assert again.critic < flops.forward * (1 if features != "fake_joint" else 2)
    assert again.student < flops.forward * (1 if features == "teacher" else 2)
    for name in ("student", "critic", "joint"):
        with FlopCounterMode(display=False) as counter:
            steps.step(name)
        expected = 2 * (getattr(flops, name) + getattr(again, name))
        assert counter.get_total_flops() == pytest.approx(expected, rel=0.02), name


def test_a_pass_for_features_leaves_out_the_decoder() -> None:
    imagined = Imagined(recipe("gan.resolutions=[4]"), sd_subject(TWO_LEVELS), 1)
    teacher = imagined.networks.teacher
    unused = set(unused_by_features(imagined, teacher.blocks()))
    parts = [part for stage in teacher.unet.up_blocks for part in stage.resnets]
    assert unused > set(parts)
    assert not unused & set(teacher.unet.mid_block.resnets)
    sizes = count_sizes(recipe("gan.resolutions=[4]"), sd_subject(TWO_LEVELS))
    decoder = [part for stage in teacher.unet.up_blocks for part in stage.parameters()]
    out = [*teacher.unet.conv_norm_out.parameters(), *teacher.unet.conv_out.parameters()]
    assert sizes.reached == sizes.network - sum(part.numel() for part in (*decoder, *out))
    assert sizes.reached < sizes.encoder < sizes.network  # What is in no block goes with all.


def test_captions_cost_what_a_counter_sees() -> None:
    """Of Stable Diffusion v1.5's text encoder, which has the published number of parameters."""
    config = CLIPTextConfig(**SD15_TEXT, num_attention_heads=12)
    with torch.device("meta"):
        model = CLIPTextModel(config)
        ids = torch.zeros(1, 77, dtype=torch.int64)
    assert sum(part.numel() for part in model.parameters()) == SD15_FROZEN["text encoder"]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    assert text_flops(SD15_TEXT) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_what_is_counted_once_is_not_counted_again() -> None:
    """In one process; what decides the cost is counted anew."""
    told: list[str] = []
    subjects = [sd_subject(two_levels(8)) for _ in range(2)]
    head = "gan.resolutions=[4]"
    for subject in subjects:
        for more in ("name=other", "optim.student.lr=1", "gan.r1_gamma=0"):
            count_flops(recipe(head, more), subject, told.append)
    assert told == ["operations of a sample"] * 2  # With R1 and without.
    for batch in (1, 2, 1):
        count_activations(recipe(head), subjects[0], batch, tell=told.append)
    assert len(told) == 4
    assert told[-1] == "activations, batch 2, compute.checkpointing=none"


def test_the_network_has_the_parameters_of_the_published_one() -> None:
    unet = new_unet(unet_config("sd15"))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964


def activations(batch: int, **compute: Any) -> int:
    fields = [f"compute.{name}={value}" for name, value in compute.items()]
    made = recipe("gan.resolutions=[16]", *fields)
    return count_activations(made, sd_subject(two_levels(32)), batch)


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
    flops = count_flops(recipe(f"gan.features={features}"), SMALL)
    assert flops.joint == flops.student + flops.critic - flops.forward


EDM = {
    # a recipe, whose network is made small
    "cifar10_fkl": CIFAR10,
    "imagenet64_js": IMAGENET64,
}
every_edm = pytest.mark.parametrize("name", EDM)


def small_edm(name: str) -> EdmConfig:
    small = {"img_resolution": 16, "model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1}
    return EDM[name].model_copy(update=small | {"attn_resolutions": (8,)})


@every_edm
def test_a_forward_of_an_edm_network_is_what_a_counter_sees(name: str) -> None:
    config = small_edm(name)
    denoiser = EdmDenoiser(edm_network(config), KarrasSchedule())
    x_t, c = torch.randn(1, 3, 16, 16), torch.zeros(1, config.label_dim)
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        denoiser(x_t, torch.tensor([5]), c)
    found = count_flops(recipe("gan.resolutions=[8]", name=name), edm_subject(config))
    assert found.forward == pytest.approx(counter.get_total_flops(), rel=0.02)


@every_edm
@pytest.mark.parametrize("features", ["teacher", "fake", "fake_joint"])
def test_an_iteration_of_edm_networks_keeps_to_one_device(name: str, features: str) -> None:
    fields = [f"gan.features={features}", "gan.resolutions=[16, 8]", "gan.width=8"]
    flops = count_flops(recipe(*fields, name=name), edm_subject(small_edm(name)))
    assert flops.joint == flops.student + flops.critic - flops.forward
    assert 4 < flops.in_forwards("student") < 6


@every_edm
def test_activations_of_edm_networks(name: str) -> None:
    """They grow with the batch and shrink with recomputation."""

    def of(batch: int, *fields: str) -> int:
        made = recipe("gan.resolutions=[8]", *fields, name=name)
        return count_activations(made, edm_subject(small_edm(name)), batch)

    kept = of(2)
    assert of(2, "compute.checkpointing=full") < kept < of(4) < 2 * kept
