"""Ways of computing the same network: attention operators, and what is computed twice."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import FlopCounterMode

from stack.nets import attention
from stack.nets.attention import ATTENTION, head_sizes, set_attention, text_read_once
from stack.nets.published import new_unet, unet_config
from stack.nets.recompute import _policy, recompute
from stack.nets.sd15 import SDDenoiser
from stack.util.errors import UserError
from tests.nets.test_sd15 import inputs
from tests.tiny import flat, tiny_denoiser

CPU = torch.device("cpu")


def gradient(denoiser: SDDenoiser) -> tuple[Tensor, Tensor, int]:
    """x0, the weights' gradient, and the bytes that are kept for the backward."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x0 = denoiser(*inputs())
    x0.square().sum().backward()
    grads = [p.grad.flatten() for p in denoiser.parameters() if p.grad is not None]
    return x0.detach(), torch.cat(grads), sum(kept.values())


def test_plain_products_agree_with_the_operator() -> None:
    denoiser = tiny_denoiser()
    other = copy.deepcopy(denoiser)
    set_attention(denoiser.unet, "sdpa", CPU)
    set_attention(other.unet, "math", CPU)
    for one, two in zip(gradient(denoiser)[:2], gradient(other)[:2], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert set(ATTENTION) == {"sdpa", "xformers", "math"}


@torch.no_grad()
@pytest.mark.parametrize("distinct", [3, 2])
def test_a_text_is_read_once_and_the_pictures_are_the_same(distinct: int) -> None:
    """Three texts, of which two may be equal."""
    denoiser = tiny_denoiser()
    torch.manual_seed(0)
    ids = torch.tensor([[5], [2], [5 if distinct == 2 else 3]]).expand(3, 77)
    x_t, c = torch.randn(3, 4, 4, 4), torch.randn(6, 77, 8)[ids[:, 0]]
    t = torch.tensor([7, 300, 999])

    def told() -> tuple[list[Tensor], list[int]]:
        """x0 of two steps, and the FLOPs of each."""
        x0, flops = [], []
        for x in (x_t, x_t.flip(0)):
            with FlopCounterMode(display=False) as counter:
                x0.append(denoiser(x, t, c))
            flops.append(counter.get_total_flops())
        return x0, flops

    expected, usual = told()
    with text_read_once(denoiser.unet, ids):
        found, flops = told()
    if distinct == 3:
        assert all(map(torch.equal, found, expected))
    torch.testing.assert_close(found, expected)
    reading = 2 * 2 * c[0].numel() * sum(width(denoiser))
    assert flops == [usual[0] - (3 - distinct) * reading, usual[1] - 3 * reading]
    assert told()[1] == usual


def width(denoiser: SDDenoiser) -> list[int]:
    """Of the keys of each attention to the text."""
    parts = (part for part in denoiser.unet.modules() if isinstance(part, Attention))
    return [part.to_k.out_features for part in parts if part.is_cross_attention]


@pytest.mark.skipif(torch.cuda.is_available(), reason="xformers may run on a GPU")
def test_what_does_not_run_here_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"xformers: does not run on cpu \(") as told:
        set_attention(tiny_denoiser().unet, "xformers", CPU)
    assert "\n" not in str(told.value)


def test_every_head_is_tried_in_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel may take one size and not another, bfloat16 and not float32."""
    tried: list[tuple[list[int], torch.dtype]] = []
    monkeypatch.setattr(attention, "_try_xformers", lambda *told: tried.append((told[0], told[2])))
    unet = new_unet(unet_config("sd15"))
    for bf16 in (True, False):
        set_attention(unet, "xformers", CPU, bf16=bf16)
    assert tried == [([40, 80, 160], torch.bfloat16), ([40, 80, 160], torch.float32)]
    assert head_sizes(tiny_denoiser().unet) == [4, 8]


def test_the_results_of_every_attention_operator_are_kept() -> None:
    """torch's and xformers', which takes its own or torch's kernels."""

    class Operator:
        namespace = "xformers_flash"

    kept = CheckpointPolicy.MUST_SAVE
    assert _policy(None, Operator()) == kept
    for name in ("_efficient_attention_forward", "_scaled_dot_product_cudnn_attention"):
        assert _policy(None, getattr(torch.ops.aten, name).default) == kept
    assert _policy(None, torch.ops.aten.silu.default) == CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_computing_again_changes_nothing_but_what_is_kept(mode: str) -> None:
    denoiser = tiny_denoiser()
    other = copy.deepcopy(denoiser)
    recompute(other.blocks(), mode)
    x0, grads, kept = gradient(denoiser)
    again, same_grads, less = gradient(other)
    assert torch.equal(x0, again)
    torch.testing.assert_close(same_grads, grads, rtol=1e-5, atol=1e-6)
    assert less < kept
    assert torch.equal(flat(denoiser), flat(other))
