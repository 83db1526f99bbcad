"""Convolutions work with channels last, however weights lie and whoever holds them."""

from __future__ import annotations

import copy
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from stack.nets.compilation import compile_blocks
from stack.nets.sd15 import SDDenoiser
from stack.parallel.local import make_dense
from tests import forked
from tests.nets.convolutions import of_dense_outputs
from tests.nets.test_feature_paths import needs_compiler
from tests.nets.test_sd15 import SCHEDULE, inputs
from tests.parallel.rows import rows
from tests.tiny import tiny_unet


@pytest.fixture
def denoiser() -> SDDenoiser:
    """Of two levels, the upper one with attention, whose tokens are reshaped to maps again."""
    return SDDenoiser(tiny_unet(size=8), SCHEDULE, "v_prediction", resolutions=(4,), bf16=False)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_every_output_has_channels_last(denoiser: SDDenoiser, dense: bool, bf16: bool) -> None:
    denoiser.bf16 = bf16
    if dense:
        make_dense(denoiser)
    assert of_dense_outputs(denoiser) == []


def test_it_is_what_the_weights_layout_alone_does_not_do(denoiser: SDDenoiser) -> None:
    make_dense(denoiser)
    for part in denoiser.modules():
        part._forward_pre_hooks.clear()
    assert len(of_dense_outputs(denoiser)) > 20


def test_group_norm_may_answer_in_another_order(denoiser: SDDenoiser) -> None:
    """As it does on CUDA."""
    for part in denoiser.modules():
        if isinstance(part, nn.GroupNorm):
            part.register_forward_hook(lambda _module, _given, result: result.contiguous())
    assert of_dense_outputs(denoiser) == []


def test_nothing_changes_but_roundings(denoiser: SDDenoiser) -> None:
    plain = copy.deepcopy(denoiser)
    make_dense(plain)
    for part in plain.modules():
        part._forward_pre_hooks.clear()
    x_t, t, c = inputs(size=8)
    torch.testing.assert_close(denoiser(x_t, t, c), plain(x_t, t, c), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("blocks", rows((1, 99), [99]))
def test_compiled_blocks_keep_the_precision_of_autocast(denoiser: SDDenoiser, blocks: int) -> None:
    compiled = copy.deepcopy(denoiser)
    results: list[Tensor] = []
    for network in (denoiser, compiled):
        network.bf16 = True
        if network is compiled:
            compile_blocks(islice(network.blocks(), blocks))
        with torch.no_grad():
            results.append(network(*inputs(size=8)))
    torch.testing.assert_close(*results, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_cut_over_ranks() -> None:
    done = forked.run("tests.nets.convolutions", ranks=2)
    assert done.returncode == 0, done.stderr
