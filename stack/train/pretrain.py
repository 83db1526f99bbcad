"""Training a teacher from nothing: autoencoder, tokenizer, text encoder and UNet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stack.diffusion.schedule import DiscreteSchedule, add_noise
from stack.diffusion.timesteps import UniformTimes
from stack.fdistill.algorithm import Noise
from stack.fdistill.losses import denoising_loss
from stack.nets.ema import EMA
from stack.nets.sd15 import SDDenoiser
from stack.nets.text import TextEncoder
from stack.nets.vae import Autoencoder, from_uint8, to_uint8
from stack.parallel.local import LocalWeights
from stack.sample.grid import save_grid
from stack.train.task import Task
from stack.util import keyed

START, END = "<|startoftext|>", "<|endoftext|>"
POSITIONS = 77
_START_LOG_VARIANCE = -6.0
_PLACE_STD = 0.2


def new_vae(resolution: int, *, channels: Sequence[int], layers: int, groups: int) -> AutoencoderKL:
    """A fresh AutoencoderKL for pictures of ``resolution``."""
    levels = len(channels)
    vae = AutoencoderKL(
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=layers,
        norm_num_groups=groups,
        latent_channels=4,
        sample_size=resolution,
    )
    # Start almost without posterior noise: the first steps learn to reconstruct, not to average.
    nn.init.constant_(vae.quant_conv.bias[4:], _START_LOG_VARIANCE)
    return vae


def new_unet(
    size: int,
    width: int,
    *,
    channels: Sequence[int],
    attention: Sequence[bool],
    layers: int,
    heads: int,
    groups: int,
) -> UNet2DConditionModel:
    """A fresh UNet for latents of ``size`` and text states of ``width``, in SD v1.5's layout;
    ``attention`` says per level whether it reads the text."""
    down = ["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in attention]
    up = ["CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in attention[::-1]]
    return UNet2DConditionModel(
        sample_size=size,
        block_out_channels=tuple(channels),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=layers,
        attention_head_dim=heads,  # SD v1.5's config, too, names the head count so.
        norm_num_groups=groups,
        cross_attention_dim=width,
    )


def new_tokenizer(captions: Iterable[str], vocabulary: int) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's manner, trained on captions; equal captions give equal ids.

    Its vocabulary is in CLIP's order: bytes, bytes that end a word, merges, the two markers.
    """
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [f"{letter}</w>" for letter in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        # Named here, or else the trainer numbers them in a hash map's order, another in every
        # process, and breaks ties between merges by number.
        special_tokens=ends,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in _merges(bpe)]
    tokens = dict.fromkeys([*alphabet, *ends, *map("".join, merges), START, END])
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=POSITIONS)


def _merges(bpe: Tokenizer) -> list[Sequence[str]]:
    return json.loads(bpe.to_str())["model"]["merges"]


def new_text_encoder(
    tokenizer: CLIPTokenizer, *, width: int, layers: int, heads: int
) -> TextEncoder:
    """A fresh CLIPTextModel for the tokenizer."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=POSITIONS,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # CLIP's own start, 0.02 for words and places alike, hides the words from an untrained UNet
    # behind 77 near-equal states: the digits of a caption are then learned three times later.
    nn.init.normal_(model.get_input_embeddings().weight)
    nn.init.normal_(model.embeddings.position_embedding.weight, std=_PLACE_STD)
    return TextEncoder(tokenizer, model)


class VaeTask(Task):
    """Mean squared error of the reconstruction, and a small KL term."""

    name = "vae"

    def __init__(
        self, model: Autoencoder, weights: LocalWeights, *, seed: int, total: int, kl_weight: float
    ) -> None:
        self.model, self.weights = model, weights
        self.seed, self.total, self.kl_weight = seed, total, kl_weight
        self.shown: Tensor | None = None

    def iteration(
        self, iteration: int, batches: Sequence[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], bool]:
        [raw] = batches
        device = next(self.model.parameters()).device
        images = from_uint8(raw["image"].to(device, non_blocking=True))
        posterior = self.model.vae.encode(images).latent_dist
        noise = Noise(self.seed, iteration, raw["position"].to(device))
        latents = posterior.mean + posterior.std * noise.normal("posterior", posterior.mean)
        error = (self.model.decode(latents) - images).square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        self.weights.backward(error + self.kl_weight * kl)
        norm, stepped = self.weights.move()
        self.shown = images[:10]
        return {"loss/error": error.detach(), "loss/kl": kl.detach(), "grad/vae": norm}, stepped

    def summary(self, figures: dict[str, Tensor]) -> dict[str, float]:
        return {name: float(value) for name, value in figures.items()}

    @torch.no_grad()
    def sample(self, iteration: int, folder: Path) -> None:
        """Pictures above their reconstructions."""
        if self.shown is not None:
            again = self.model.decode(self.model.encode_mean(self.shown))
            save_grid(folder / f"vae-{iteration:07d}.png", [to_uint8(self.shown), to_uint8(again)])

    def tensors(self) -> dict[str, Tensor]:
        return self.weights.tensors()

    def counters(self) -> dict[str, Any]:
        return {"vae": self.weights.steps}

    def load_counters(self, counters: dict[str, Any]) -> None:
        self.weights.steps = counters["vae"]


class LatentCache:
    """Scaled latents by sample key, of what :meth:`fill` was given; other samples are encoded
    whenever they come."""

    def __init__(self, vae: Autoencoder) -> None:
        self.vae = vae
        self.known: dict[str, Tensor] = {}

    def fill(self, pictures: Iterable[tuple[list[str], Tensor]]) -> None:
        """Encode pictures, uint8 (B, 3, H, W), in the batches they come in: last bits depend on
        these, and must be those of every start of a run. Keys that repeat are not cached."""
        repeated = set()
        for keys, images in pictures:
            repeated |= self.known.keys() & keys
            self.known |= dict(zip(keys, self._encode(images), strict=True))
        for key in repeated:
            del self.known[key]

    def __call__(self, keys: list[str], images: Tensor | None) -> Tensor:
        """(B, 4, h, w) latents of uint8 pictures (B, 3, H, W), which known keys do not need."""
        if all(key in self.known for key in keys):
            return torch.stack([self.known[key] for key in keys])
        assert images is not None
        return self._encode(images)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        # In the layout of a stack: the UNet's last bits depend on that, too.
        return (self.vae.encode_mean(from_uint8(images)) * self.vae.scale).contiguous()


class UnetTask(Task):
    """Denoising with caption dropout, over UNet and text encoder together."""

    name = "unet"

    def __init__(
        self,
        denoiser: SDDenoiser,
        text: TextEncoder,
        latents: LatentCache,
        weights: LocalWeights,
        average: EMA,
        *,
        seed: int,
        total: int,
        caption_dropout: float,
    ) -> None:
        self.denoiser, self.text, self.latents = denoiser, text, latents
        self.weights, self.average = weights, average
        self.seed, self.total, self.caption_dropout = seed, total, caption_dropout
        self.times = UniformTimes(0, denoiser.schedule.steps - 1)
        self.null = text.null_ids

    def iteration(
        self, iteration: int, batches: Sequence[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], bool]:
        [raw] = batches
        device = next(self.denoiser.parameters()).device
        positions = raw["position"].to(device)
        noise = Noise(self.seed, iteration, positions)
        images = raw["image"].to(device, non_blocking=True) if "image" in raw else None
        x0 = self.latents(raw["key"], images)
        t = noise.times("t", self.times)
        x_t = add_noise(x0, noise.normal("eps", x0), t, self.denoiser.schedule)
        c = self.text(self._dropout(raw["tokens"].to(device), iteration, positions))
        loss = denoising_loss(self.denoiser(x_t, t, c), x0, self.denoiser.loss_weight(t))
        self.weights.backward(loss)
        norm, stepped = self.weights.move()
        if stepped:
            self.average.update()
        return {"loss/denoising": loss.detach(), "grad/unet": norm}, stepped

    def _dropout(self, ids: Tensor, iteration: int, positions: Tensor) -> Tensor:
        u = keyed.uniform(
            (), seed=self.seed, iteration=iteration, role="caption dropout", positions=positions
        )
        return torch.where((u < self.caption_dropout)[:, None], self.null.to(ids.device), ids)

    def summary(self, figures: dict[str, Tensor]) -> dict[str, float]:
        return {name: float(value) for name, value in figures.items()}

    def sample(self, iteration: int, folder: Path) -> None:
        """The finished teacher is looked at with ``stack sample``."""

    def tensors(self) -> dict[str, Tensor]:
        average = {f"ema.{name}": value for name, value in self.average.tensors().items()}
        return self.weights.tensors() | average

    def counters(self) -> dict[str, Any]:
        return {"unet": self.weights.steps, "ema": self.average.updates}

    def load_counters(self, counters: dict[str, Any]) -> None:
        self.weights.steps = counters["unet"]
        self.average.updates = counters["ema"]


def module_of(denoiser: SDDenoiser, text: TextEncoder) -> nn.Module:
    """What the teacher's optimizer trains."""
    return nn.ModuleDict({"unet": denoiser.unet, "text": text.model})


SD_SCHEDULE = DiscreteSchedule.scaled_linear()
