"""The parts of a teacher from nothing."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from stack.nets.ema import EMA
from stack.nets.sd15 import SDDenoiser
from stack.nets.text import tokenize
from stack.nets.vae import Autoencoder, from_uint8
from stack.parallel.adam import AdamW
from stack.parallel.local import LocalWeights
from stack.train.pretrain import (
    END,
    SD_SCHEDULE,
    START,
    LatentCache,
    UnetTask,
    module_of,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    new_vae,
)

TIES = [" ".join(word) for word in permutations(["nine", "vine", "zone", "seen", "neon"])]
"""Every pair of letters many times over, equally often."""


def test_equal_captions_give_an_equal_tokenizer() -> None:
    """Else a resumed run, or another rank, would read other words than were trained."""
    first, *others = (new_tokenizer(order, 600) for order in (TIES, TIES, TIES[::-1], TIES))
    for other in others:
        assert other.get_vocab() == first.get_vocab()
        assert other(TIES).input_ids == first(TIES).input_ids


def test_the_vocabulary_is_in_clips_order() -> None:
    tokenizer = new_tokenizer(TIES, 520)
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    assert [vocab[token] for token in tokens] == list(range(520))
    assert all(len(token) == 1 for token in tokens[:256])
    assert tokens[256:512] == [f"{letter}</w>" for letter in tokens[:256]]
    assert tokens[-2:] == [START, END]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (START, END, END)


def test_words_are_whole_and_any_text_can_be_written() -> None:
    tokenizer = new_tokenizer(["a red seven", "a blue seven"] * 9, 600)
    assert tokenizer.tokenize("A red  SEVEN") == ["a</w>", "red</w>", "seven</w>"]
    for text in ("zébra four", "七", ""):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert END not in tokenizer.convert_ids_to_tokens(ids)
        assert tokenizer.decode(ids).strip() == text


def test_saved_and_read_again(tmp_path: Path) -> None:
    tokenizer = new_tokenizer(TIES, 600)
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for captions, too_long in ((TIES[:9], 0), (["", "x" * 300], 1)):
        (ids, cut), (expected, _) = tokenize(again, captions), tokenize(tokenizer, captions)
        assert torch.equal(ids, expected)
        assert ids.shape == (len(captions), 77)
        assert cut == too_long


class CountingVae(Autoencoder):
    calls = 0

    def encode_mean(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().encode_mean(images)


def cache() -> LatentCache:
    torch.manual_seed(0)
    vae: AutoencoderKL = new_vae(16, channels=(8, 8), layers=1, groups=4)
    vae.register_to_config(scaling_factor=0.5)
    return LatentCache(CountingVae(vae).eval())


def pictures(*names: str) -> tuple[list[str], Tensor]:
    images = [torch.full((3, 16, 16), ord(name), dtype=torch.uint8) for name in names]
    return list(names), torch.stack(images)


@pytest.mark.parametrize("wanted", ["ba", "cab", "dcba", "ae"])
def test_latents_are_the_pictures_wherever_they_come_from(wanted: str) -> None:
    latents = cache()
    latents.fill([pictures(*"abc"), pictures("d")])
    keys, images = pictures(*wanted)
    found = latents(keys, images)
    assert latents.vae.calls == (3 if "e" in wanted else 2)
    with torch.no_grad():
        expected = latents.vae.encode_mean(from_uint8(images)) * 0.5
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(), "the UNet's rounding depends on the layout"


def test_known_latents_need_no_pictures() -> None:
    latents = cache()
    latents.fill([pictures(*"abc")])
    keys, images = pictures(*"ba")
    assert torch.equal(latents(keys, None), latents(keys, images))
    assert latents.vae.calls == 1


def test_pictures_of_one_key_are_not_mistaken_for_each_other() -> None:
    """Two folders may name their samples alike."""
    latents = cache()
    latents.fill([(["a", "b"], pictures(*"ab")[1]), (["a"], pictures("z")[1])])
    assert latents.known.keys() == {"b"}


def test_an_untrained_text_encoder_tells_words_apart() -> None:
    """Half of a state's variance or more is the word's, so that a UNet can learn from it."""
    captions = ["nine vine", "vine nine", "zone seen", "seen neon"]
    text = new_text_encoder(new_tokenizer(TIES, 600), width=32, layers=1, heads=2)
    ids, _ = text.tokenize(captions)
    with torch.no_grad():
        first_words = text(ids)[:, 1]
    assert ids[:, 1].unique().numel() == 4
    assert first_words.var(0).mean() > 0.5 * first_words.var()


def test_caption_dropout_empties_some_captions_and_leaves_the_others() -> None:
    """By the sample's place in the batch: one empty caption does not empty its neighbours'."""
    text = new_text_encoder(new_tokenizer(TIES, 600), width=8, layers=1, heads=1)
    denoiser = SDDenoiser(
        new_unet(4, 8, channels=[8], attention=[True], layers=1, heads=1, groups=4),
        SD_SCHEDULE,
        "v_prediction",
    )
    module = module_of(denoiser, text)
    weights = LocalWeights("unet", module, AdamW(module.parameters()), lr_at=float, max_norm=1.0)
    latents, average = cache(), EMA(dict(module.named_parameters()), 0.9)
    task = UnetTask(denoiser, text, latents, weights, average, seed=0, total=1, caption_dropout=0.3)
    ids, _ = text.tokenize(TIES)
    positions = torch.arange(len(ids))
    dropped = task._dropout(ids, 0, positions)
    empty = (dropped == text.null_ids).all(1)
    assert 0.1 < empty.float().mean() < 0.5
    assert torch.equal(dropped[~empty], ids[~empty])
    some = torch.tensor([3, 1, 70])
    assert torch.equal(task._dropout(ids[some], 0, some), dropped[some])
