"""Composition of the distillation of a diffusers pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from stack.config.schema import DistillRecipe, SDTeacher
from stack.data.batch import BatchLoader
from stack.data.index import MANIFEST
from stack.data.stream import ShardStream
from stack.diffusion.schedule import DiscreteSchedule
from stack.nets.attention import set_attention
from stack.nets.hub import pipeline_folder
from stack.nets.sd15 import SDDenoiser, load_schedule, load_unet
from stack.nets.text import TextEncoder, load_text, tokenizer_hash
from stack.nets.vae import Autoencoder, from_uint8, load_vae, vae_hash
from stack.parallel.mesh import Layout
from stack.sample.generate import TextToImage, generate
from stack.sample.grid import save_grid
from stack.train.build import Job, check_resolution, prompts_of, stream_of
from stack.train.build_algorithm import Networks, assemble, networks_around
from stack.train.build_quick import quick_measure
from stack.train.sources import LatentSource
from stack.util.errors import UserError


def build_sd(recipe: DistillRecipe, layout: Layout) -> Job:
    """A distillation of a pipeline in Stable Diffusion's layout."""
    assert isinstance(recipe.teacher, SDTeacher)
    folder = pipeline_folder(recipe.teacher.path, recipe.teacher.revision)
    device, ranks = layout.device, layout.ranks
    schedule, parameterization = load_schedule(folder)
    text, vae = load_text(folder).to(device), load_vae(folder, bf16=layout.bf16).to(device)
    networks = sd_networks(recipe, load_unet(folder), schedule, parameterization, layout)
    student = networks.student
    assert isinstance(student, SDDenoiser)
    source = _source(recipe, layout, text, vae, student.unet.config.sample_size)
    pictures = TextToImage(student, text, vae, device)
    captions = prompts_of(recipe) if recipe.log.sample_every else []

    def draw(iteration: int, out: Path) -> None:
        images = generate(pictures, captions, seed=recipe.seed, batch=len(captions))
        if ranks.first:
            save_grid(out / f"student-{iteration:07d}.png", images.split(10))

    measure = quick_measure(recipe, pictures, ranks)
    return Job(assemble(recipe, layout, networks, draw, measure), source)


def sd_networks(
    recipe: DistillRecipe,
    unet: UNet2DConditionModel,
    schedule: DiscreteSchedule,
    parameterization: str,
    layout: Layout,
) -> Networks:
    """Student, fake score, teacher and heads of a pipeline's UNet (float32), on the layout's
    device."""
    set_attention(unet, recipe.compute.attention, layout.device, bf16=layout.bf16)
    teacher = SDDenoiser(
        unet, schedule, parameterization, resolutions=recipe.gan.resolutions, bf16=layout.bf16
    ).to(layout.device)
    return networks_around(teacher, recipe, layout)


def _source(
    recipe: DistillRecipe, layout: Layout, text: TextEncoder, vae: Autoencoder, size: int
) -> LatentSource:
    """Latents of ``size`` and token ids, made of what the shards hold."""
    assert recipe.data
    assert isinstance(recipe.teacher, SDTeacher)
    folder = pipeline_folder(recipe.teacher.path, recipe.teacher.revision)
    device = layout.device
    stream = stream_of(recipe.data, recipe.seed, ranks=layout.ranks)
    _check_makers(stream, folder)
    check_resolution(stream, size * vae.factor)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        # In half precision, as data_prep latents stores them.
        return vae.encode_mean(from_uint8(images.to(device))).half()

    loader = BatchLoader(
        stream,
        ("latent", "tokens"),
        workers=recipe.data.workers,
        prefetch=recipe.data.prefetch,
        pin_memory=device.type == "cuda",
        tokenize=text.tokenize,
        encode=encode,
    )
    return LatentSource(
        loader,
        text,
        scale=vae.scale,
        samples=recipe.batch_size,
        accumulation=layout.micro_batches,
        device=device,
    )


def _check_makers(stream: ShardStream, teacher: Path) -> None:
    """Refuse latents of another autoencoder and token ids of another tokenizer."""
    wanted = {"vae": vae_hash(teacher), "tokenizer": tokenizer_hash(teacher)}
    verbs = {"vae": "latents", "tokenizer": "captions"}
    for folder, manifest in stream.manifests.items():
        for part, made in (("vae", manifest.vae), ("tokenizer", manifest.tokenizer)):
            if made and made.hash != wanted[part]:
                raise UserError(
                    f"{folder.file(MANIFEST)}: {part}.hash: {made.hash[:12]} is not that of "
                    f"{teacher}/{part} ({wanted[part][:12]}); "
                    f"run python -m data_prep {verbs[part]} with this teacher"
                )
