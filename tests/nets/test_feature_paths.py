"""Features of the encoder alone are those of the full forward, bit for bit in float32, whatever
computes the blocks: recomputation, compilation, FSDP2."""

from __future__ import annotations

import shutil
from itertools import islice

import pytest
import torch

from stack.nets.compilation import compile_blocks
from stack.nets.recompute import recompute
from tests import forked
from tests.nets.feature_ranks import assert_one_result
from tests.nets.test_sd15 import inputs
from tests.parallel.rows import rows
from tests.tiny import flat, tiny_denoiser

MODES = ["none", "selective", "full"]
COMPILED = [("selective", 1), *((mode, 99) for mode in MODES)]
"""How blocks are recomputed, and how many are compiled: each takes a C++ compiler half a minute."""
needs_compiler = pytest.mark.skipif(
    not shutil.which("g++"), reason="torch.compile needs g++ on a CPU"
)


@pytest.mark.parametrize("mode", MODES)
def test_with_recomputation(mode: str) -> None:
    denoiser = tiny_denoiser()
    recompute(denoiser.blocks(), mode)
    assert_one_result(denoiser)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("mode", "blocks"), rows(COMPILED, COMPILED[1:]))
def test_compiled(mode: str, blocks: int) -> None:
    """Blocks are compiled one by one: on any processor both paths run the same code on the same
    numbers. And it is near what is not compiled, with the gradient of the weights."""
    denoiser, plain = tiny_denoiser(), tiny_denoiser()
    recompute(denoiser.blocks(), mode)
    compile_blocks(islice(denoiser.blocks(), blocks))
    assert_one_result(denoiser)
    gradients = []
    for network in (denoiser, plain):
        network(*inputs()).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    assert torch.equal(flat(denoiser), flat(plain))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "full"])
def test_cut_over_ranks(mode: str) -> None:
    done = forked.run("tests.nets.feature_ranks", mode, "plain", ranks=2)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.drill
@needs_compiler
def test_cut_over_ranks_and_compiled() -> None:
    done = forked.run("tests.nets.feature_ranks", "full", "compiled", ranks=2)
    assert done.returncode == 0, done.stderr
