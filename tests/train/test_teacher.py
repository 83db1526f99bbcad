"""The parts of a teacher from nothing."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from stack.nets.text import tokenize
from stack.nets.vae import Autoencoder, from_uint8
from stack.train.pretrain import (
    END,
    START,
    LatentCache,
    new_text_encoder,
    new_tokenizer,
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


def cache(limit: int = 99) -> LatentCache:
    torch.manual_seed(0)
    vae: AutoencoderKL = new_vae(16, channels=(8, 8), layers=1, groups=4)
    vae.register_to_config(scaling_factor=0.5)
    return LatentCache(CountingVae(vae).eval(), limit=limit)


def test_cached_latents_are_those_of_a_run_without_a_cache() -> None:
    """Whatever was seen before, bit for bit: a resumed run begins with an empty cache."""
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    keys = [str(number) for number in range(40)]
    used = cache()
    batches = [range(8), range(8, 16), range(5, 13), range(15, 23), range(22, 30), range(8)]
    for rows in batches:
        chosen = list(rows)
        found = used([keys[i] for i in chosen], images[chosen])
        assert torch.equal(found, cache()([keys[i] for i in chosen], images[chosen]))
        with torch.no_grad():
            expected = used.vae.encode_mean(from_uint8(images[chosen])) * 0.5
        assert torch.equal(found, expected)
        assert found.is_contiguous(), "the UNet's rounding depends on the layout"


def test_what_is_cached_is_not_encoded_again() -> None:
    images, keys = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), ["a", "b", "c", "d"]
    small, large = cache(limit=3), cache(limit=4)
    for latents in (small, large):
        latents(keys, images)
        latents(keys[::-1], images)
    assert (small.vae.calls, large.vae.calls) == (2, 1)
    assert small.known == {}


def test_an_untrained_text_encoder_tells_words_apart() -> None:
    """Half of a state's variance or more is the word's, so that a UNet can learn from it."""
    captions = ["nine vine", "vine nine", "zone seen", "seen neon"]
    text = new_text_encoder(new_tokenizer(TIES, 600), width=32, layers=1, heads=2)
    ids, _ = text.tokenize(captions)
    with torch.no_grad():
        first_words = text(ids)[:, 1]
    assert ids[:, 1].unique().numel() == 4
    assert first_words.var(0).mean() > 0.5 * first_words.var()
