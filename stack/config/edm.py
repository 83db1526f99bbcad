"""The recipe's parts of EDM's networks: a teacher to distil, and ``stack pretrain`` of one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stack.config.pretrain import Pretraining
from stack.config.sections import (
    OPERATIONAL,
    Adam,
    Fraction,
    Positive,
    Rate,
    Section,
)


class EdmTeacher(Section):
    """A pixel-space network with EDM's preconditioning (Karras et al. 2022)."""

    kind: Literal["edm"]
    """edm: a network's folder, from stack import-edm or stack pretrain."""
    path: str
    """The folder."""
    levels: int = Field(default=1000, ge=2)
    """Times: indices of a Karras grid from sigma 0.002 to 80, of rising noise [F]."""


class EdmModel(Section):
    """An EDM network and its training (Karras et al. 2022, Table 1 and Appendix F)."""

    architecture: Literal["ddpm++", "adm"] = "ddpm++"
    """ddpm++: that of CIFAR-10; adm: that of ImageNet-64."""
    classes: int = Field(default=0, ge=0, le=1_000_000)
    """Of the condition; 0 for none."""
    width: int = Field(default=128, ge=4, le=4096, multiple_of=4)
    """Channels that the multiples are of."""
    multiples: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        default=[2, 2, 2], min_length=1, max_length=8
    )
    """Channels per level; each level after the first halves the picture."""
    blocks: int = Field(default=4, ge=1, le=32)
    """Residual blocks per level."""
    attention: list[Positive] = Field(default=[16], max_length=8)
    """Sizes of the feature maps with self-attention, each one that the network has."""
    dropout: Fraction = 0.13
    """Inside residual blocks."""
    augment: Fraction = 0.12
    """Probability of each of EDM's geometric augmentations (Appendix F.2, resampled and told as
    EDM's released code does), of which the network is told, so that it does not make such pictures;
    every second picture is mirrored besides. 0 for none of all this."""
    log_sigma_mean: float = -1.2
    """Mean of ln(sigma) in training."""
    log_sigma_std: Rate = 1.2
    """Its standard deviation."""
    iterations: Positive
    """Training steps."""
    ema: Fraction = 0.999
    """Decay of the average, which is what becomes the teacher."""
    steps: Positive = Field(default=18, ge=2, json_schema_extra=OPERATIONAL)
    """Heun steps of the pictures that are looked at while training."""
    optim: Adam


class EdmPretrainRecipe(Pretraining):
    """``stack pretrain``: an EDM teacher from pictures and classes."""

    job: Literal["pretrain_edm"]
    """Which verb the recipe is for."""
    batches = "data.global_batch"
    edm: EdmModel
