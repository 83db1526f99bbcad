"""The recipe of ``stack pretrain``: every field with its type, default and meaning."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stack.config.sections import Adam, Data, Fraction, Positive, Recipe, Section, Weight


def _divide(channels: list[int], name: str, parts: int) -> None:
    """Raise a ValueError unless ``parts`` divides each of the channel counts."""
    for count in channels:
        if count % parts:
            raise ValueError(f"{name}: {parts} does not divide {count} channels")


class VaeModel(Section):
    """AutoencoderKL, trained on pictures alone."""

    channels: list[Positive] = Field(min_length=2)
    """Per level; each level after the first halves the picture."""
    layers: Positive = 1
    """ResNet blocks per level."""
    groups: Positive = 8
    """Of group normalisation."""
    kl_weight: Weight = 1e-4
    """Weight of the KL term per latent element against the mean squared error."""
    iterations: Positive
    """Training steps."""
    batch: Positive
    """Pictures per step."""
    optim: Adam

    @model_validator(mode="after")
    def _fits(self) -> VaeModel:
        _divide(self.channels, "groups", self.groups)
        return self


class TextModel(Section):
    """BPE tokenizer and CLIPTextModel; trained together with the UNet."""

    vocabulary: int = Field(default=1024, ge=514)
    """At most this many tokens: 256 bytes, as many that end a word, merges, two markers."""
    width: Positive = 32
    """Of the hidden states."""
    layers: Positive = 1
    """Transformer blocks."""
    heads: Positive = 2
    """Of attention."""

    @model_validator(mode="after")
    def _fits(self) -> TextModel:
        _divide([self.width], "heads", self.heads)
        return self


class UnetModel(Section):
    """UNet2DConditionModel (v-prediction) under Stable Diffusion v1.5's noise schedule."""

    channels: list[Positive] = Field(min_length=1)
    """Per level; each level after the first halves the latents."""
    attention: list[bool]
    """Per level: cross-attention or plain ResNet blocks."""
    layers: Positive = 1
    """ResNet blocks per level."""
    heads: Positive = 2
    """Of attention."""
    groups: Positive = 8
    """Of group normalisation."""
    iterations: Positive
    """Training steps."""
    batch: Positive
    """Latents per step."""
    caption_dropout: Fraction = 0.1
    """Share of empty captions, for classifier-free guidance."""
    optim: Adam
    ema: Fraction = 0.999
    """Decay of the average, which is what becomes the teacher."""

    @model_validator(mode="after")
    def _fits(self) -> UnetModel:
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention: {len(self.attention)} levels, but {len(self.channels)} of channels"
            )
        _divide(self.channels, "groups", self.groups)
        _divide(self.channels, "heads", self.heads)
        return self


class Pretraining(Recipe):
    """What all recipes of ``stack pretrain`` share."""

    data: Data
    batches: ClassVar[str]
    """The fields that say how large a batch is, for messages."""

    @model_validator(mode="after")
    def _whole_networks(self) -> Pretraining:
        if self.parallel.backend not in ("none", "ddp"):
            raise ValueError(
                f"parallel.backend: {self.parallel.backend}, but a teacher is pretrained whole on "
                "every rank; set none or ddp"
            )
        return self

    @model_validator(mode="after")
    def _one_micro_batch(self) -> Pretraining:
        for field in ("accumulation", "micro_batch"):
            if (value := getattr(self.parallel, field)) not in (1, None):
                raise ValueError(
                    f"parallel.{field}: {value}, but pretraining has no micro-batches; lower "
                    f"{self.batches}"
                )
        return self


class PretrainRecipe(Pretraining):
    """``stack pretrain``: a text-to-image teacher from pictures and captions."""

    job: Literal["pretrain"]
    """Which verb the recipe is for."""
    batches = "vae.batch and unet.batch"
    vae: VaeModel
    text: TextModel
    unet: UnetModel
