"""Composition of a teacher's pretraining, and its pipeline folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from stack.config.schema import PretrainRecipe
from stack.data.batch import BatchLoader
from stack.data.stream import ShardStream
from stack.diffusion.schedule import SD_BETAS
from stack.evaluate.shards import read_each
from stack.nets.ema import EMA
from stack.nets.sd15 import SDDenoiser
from stack.nets.text import TextEncoder
from stack.nets.vae import Autoencoder, from_uint8
from stack.parallel.collectives import ALONE, Ranks
from stack.sample.export import name_text_keys
from stack.train.build import Job, cache_of, layout_of, stream_of
from stack.train.optim import adam_weights
from stack.train.pretrain import (
    SD_SCHEDULE,
    LatentCache,
    UnetTask,
    VaeTask,
    module_of,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    new_vae,
)
from stack.train.sources import RawSource
from stack.util.errors import UserError

_SCALE_SAMPLES = 1024
"""Pictures whose latents' standard deviation becomes the scaling factor."""
_CACHED_SAMPLES = 1 << 16
"""Most samples whose latents are kept in memory while training: at 64x64, 4 GB of them."""
_ENCODED = 256
"""Pictures that go through the autoencoder at once."""


@dataclass
class TeacherParts:
    """What becomes the pipeline folder."""

    denoiser: SDDenoiser
    text: TextEncoder
    vae: Autoencoder
    average: EMA


def build_vae(recipe: PretrainRecipe, ranks: Ranks = ALONE) -> tuple[Job, Autoencoder]:
    """The autoencoder's training."""
    torch.manual_seed(recipe.seed)
    config, layout = recipe.vae, layout_of(recipe, ranks)
    device = layout.device
    stream = stream_of(recipe.data, recipe.seed, ranks=ranks, batch=config.batch)
    vae = new_vae(
        _resolution(stream), channels=config.channels, layers=config.layers, groups=config.groups
    )
    model = Autoencoder(vae).to(device)
    weights = adam_weights(
        "vae",
        model.vae,
        layout,
        total=config.iterations,
        **config.optim.model_dump(),
    )
    task = VaeTask(
        model, weights, seed=recipe.seed, total=config.iterations, kl_weight=config.kl_weight
    )
    loader = BatchLoader(
        stream,
        ("image",),
        workers=recipe.data.workers,
        prefetch=recipe.data.prefetch,
        pin_memory=device.type == "cuda",
    )
    return Job(task, RawSource(loader, samples=config.batch)), model


def build_unet(
    recipe: PretrainRecipe, vae: Autoencoder, ranks: Ranks = ALONE
) -> tuple[Job, TeacherParts]:
    """The training of UNet and text encoder on the finished autoencoder's latents."""
    torch.manual_seed(recipe.seed)
    config, layout = recipe.unet, layout_of(recipe, ranks)
    device = layout.device
    vae.requires_grad_(False).eval()
    vae.vae.register_to_config(scaling_factor=_latent_scale(recipe, vae))
    stream = stream_of(recipe.data, recipe.seed, ranks=ranks, batch=config.batch)
    tokenizer = new_tokenizer(_captions(recipe), recipe.text.vocabulary)
    text = new_text_encoder(
        tokenizer, width=recipe.text.width, layers=recipe.text.layers, heads=recipe.text.heads
    ).to(device)
    unet = new_unet(
        _resolution(stream) // vae.factor,
        recipe.text.width,
        channels=config.channels,
        attention=config.attention,
        layers=config.layers,
        heads=config.heads,
        groups=config.groups,
    ).to(device)
    denoiser = SDDenoiser(unet, SD_SCHEDULE, "v_prediction", bf16=recipe.precision == "bf16")
    module = module_of(denoiser, text)
    weights = adam_weights(
        "unet",
        module,
        layout,
        total=config.iterations,
        **config.optim.model_dump(),
    )
    parts = TeacherParts(denoiser, text, vae, EMA(dict(module.named_parameters()), config.ema))
    latents = LatentCache(vae)
    samples = sum(manifest.samples for manifest in stream.manifests.values())
    if samples <= _CACHED_SAMPLES:
        latents.fill(_pictures(recipe, device))
    # Pictures whose latents are all known are not decoded again.
    pictures = () if len(latents.known) == samples else ("image",)
    task = UnetTask(
        denoiser,
        text,
        latents,
        weights,
        parts.average,
        seed=recipe.seed,
        total=config.iterations,
        caption_dropout=config.caption_dropout,
    )
    loader = BatchLoader(
        stream,
        (*pictures, "tokens", "key"),
        workers=recipe.data.workers,
        prefetch=recipe.data.prefetch,
        pin_memory=device.type == "cuda",
        tokenize=text.tokenize,
    )
    return Job(task, RawSource(loader, samples=config.batch)), parts


def save_teacher(parts: TeacherParts, out: Path) -> None:
    """Write the averaged teacher as a StableDiffusionPipeline folder."""
    scheduler = DDIMScheduler(
        beta_start=SD_BETAS[0],
        beta_end=SD_BETAS[1],
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    with parts.average.applied():
        StableDiffusionPipeline(
            vae=parts.vae.vae,
            text_encoder=parts.text.model,
            tokenizer=parts.text.tokenizer,
            unet=parts.denoiser.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(staging)
    name_text_keys(staging)
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)


def _resolution(stream: ShardStream) -> int:
    """Side of the pictures, which all folders must share."""
    sides = {manifest.resolution for manifest in stream.manifests.values()}
    side = sides.pop()
    if sides or side is None:
        folders = ", ".join(map(str, stream.manifests))
        raise UserError(f"{folders}: resolution: pictures must be squares of one size")
    return side


def _pictures(recipe: PretrainRecipe, device: torch.device) -> Iterator[tuple[list[str], Tensor]]:
    """Keys and pictures of every sample once, in an order that is always the same."""
    data = recipe.data
    batches = read_each(data.folders, ("image", "key"), cache=cache_of(data), retries=data.retries)
    samples = (
        sample
        for batch in batches
        for sample in zip(batch["key"], batch["image"].split(1), strict=True)
    )
    while rows := list(islice(samples, _ENCODED)):
        images = torch.cat([image for _, image in rows])
        yield [key for key, _ in rows], images.to(device)


@torch.no_grad()
def _latent_scale(recipe: PretrainRecipe, vae: Autoencoder) -> float:
    """1 / standard deviation of the latents, as SD's 0.18215 came about."""
    batch = min(_SCALE_SAMPLES, recipe.data.global_batch)
    loader = iter(BatchLoader(stream_of(recipe.data, recipe.seed, batch=batch), ("image",)))
    device = next(vae.parameters()).device
    latents = [
        vae.encode_mean(from_uint8(next(loader)["image"].to(device)))
        for _ in range(_SCALE_SAMPLES // batch)
    ]
    return round(1 / float(torch.cat(latents).std()), 5)


def _captions(recipe: PretrainRecipe) -> list[str]:
    """The captions of one epoch, for the tokenizer."""
    stream = stream_of(recipe.data, recipe.seed)
    loader = iter(BatchLoader(stream, ("text",)))
    return [text for _ in range(stream.steps_per_epoch) for text in next(loader)["text"]]
