"""Composition of the distillation of an EDM network, and of its pretraining."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from stack.config.edm import EdmPretrainRecipe, EdmTeacher
from stack.config.schema import Data, DistillRecipe
from stack.data.batch import BatchLoader
from stack.data.index import MANIFEST
from stack.data.stream import ShardStream
from stack.diffusion.karras import KarrasSchedule, LogNormalSigmas
from stack.nets.edm import EdmDenoiser, EdmNetwork, edm_network
from stack.nets.edm_blocks import EdmConfig, most_levels
from stack.nets.edm_files import load_edm, save_edm, valid_config
from stack.nets.ema import EMA
from stack.parallel.collectives import ALONE, Ranks
from stack.parallel.mesh import Layout
from stack.sample.class_to_image import ClassToImage, grid_classes
from stack.sample.grid import save_grid
from stack.train.augment import AUGMENT_DIM
from stack.train.build import Job, check_resolution, layout_of, stream_of
from stack.train.build_algorithm import Networks, assemble, networks_around
from stack.train.build_quick import quick_measure
from stack.train.optim import adam_weights
from stack.train.pretrain_edm import EdmTask
from stack.train.sources import PixelSource
from stack.util.errors import UserError

_COLUMNS = 10
"""Pictures in a row of a sample grid."""


def build_edm(recipe: DistillRecipe, layout: Layout) -> Job:
    """A distillation of an EDM network."""
    assert isinstance(recipe.teacher, EdmTeacher)
    assert recipe.data
    network = load_edm(recipe.teacher.path, augmentation=False)
    networks = edm_networks(recipe, network, recipe.teacher.levels, layout)
    student = networks.student
    assert isinstance(student, EdmDenoiser)
    config = student.config
    stream = stream_of(recipe.data, recipe.seed, ranks=layout.ranks)
    check_resolution(stream, config.img_resolution, told=True)
    source = PixelSource(
        _loader(recipe.data, stream, config.label_dim, layout.device),
        classes=config.label_dim,
        samples=recipe.batch_size,
        accumulation=layout.micro_batches,
        device=layout.device,
    )
    pictures = ClassToImage(student, layout.device)
    draw = _drawer("student", pictures, recipe.seed, layout.ranks)
    measure = quick_measure(recipe, pictures, layout.ranks)
    return Job(assemble(recipe, layout, networks, draw, measure), source)


def edm_networks(
    recipe: DistillRecipe, network: EdmNetwork, levels: int, layout: Layout
) -> Networks:
    """Student, fake score, teacher and heads of an EDM network (float32) without augmentation, on
    the layout's device.

    Args:
        levels: times of the grid.
    """
    _check_recipe(recipe)
    teacher = EdmDenoiser(
        network,
        KarrasSchedule(levels),
        resolutions=recipe.gan.resolutions,
        bf16=layout.bf16,
    ).to(layout.device)
    return networks_around(teacher, recipe, layout)


def _check_recipe(recipe: DistillRecipe) -> None:
    """Refuse what only text-to-image pipelines have."""
    if recipe.guidance != 1:
        raise UserError(
            f"guidance: {recipe.guidance:g}, but an EDM network has not learned the empty "
            "condition; set guidance=1"
        )
    if recipe.compute.attention != "sdpa":
        raise UserError(
            f"compute.attention: {recipe.compute.attention}, but an EDM network has torch's "
            "operator alone; set sdpa"
        )


def build_edm_teacher(
    recipe: EdmPretrainRecipe, ranks: Ranks = ALONE
) -> tuple[Job, Callable[[Path], None]]:
    """The training of an EDM network, and what writes the averaged network's folder."""
    torch.manual_seed(recipe.seed)
    model, layout = recipe.edm, layout_of(recipe, ranks)
    stream = stream_of(recipe.data, recipe.seed, ranks=ranks)
    network = edm_network(teacher_config(recipe, stream), model.dropout)
    denoiser = EdmDenoiser(network, KarrasSchedule(), bf16=layout.bf16).to(layout.device)
    weights = adam_weights(
        "edm", denoiser.model, layout, total=model.iterations, **model.optim.model_dump()
    )
    average = EMA(weights.pieces(), model.ema, weights.refresh)
    pictures = ClassToImage(denoiser, layout.device, model.steps)
    task = EdmTask(
        denoiser,
        weights,
        average,
        _drawer("teacher", pictures, recipe.seed, ranks),
        sigmas=LogNormalSigmas(model.log_sigma_mean, model.log_sigma_std),
        augmented=model.augment,
        seed=recipe.seed,
        total=model.iterations,
    )
    source = PixelSource(
        _loader(recipe.data, stream, model.classes, layout.device),
        classes=model.classes,
        samples=recipe.data.global_batch,
        device=layout.device,
    )

    def save(out: Path) -> None:
        with average.applied():
            save_edm(network, out)

    return Job(task, source), save


def teacher_config(recipe: EdmPretrainRecipe, stream: ShardStream) -> EdmConfig:
    """The network's, for the data's pictures."""
    model, (folder, first), *others = recipe.edm, *stream.manifests.items()
    size = first.resolution
    if size is None or any(made.resolution != size for _, made in others):
        raise UserError(
            f"{folder.file(MANIFEST)}: resolution: {size}: pictures of all folders must be squares "
            "of one size"
        )
    if len(model.multiples) > most_levels(size):
        raise UserError(
            f"edm.multiples: {model.multiples}: {len(model.multiples)} levels, but pictures of "
            f"{size} pixels can be halved evenly for {most_levels(size)} of them"
        )
    values = {
        "architecture": model.architecture,
        "img_resolution": size,
        "label_dim": model.classes,
        "augment_dim": AUGMENT_DIM if model.augment else 0,
        "model_channels": model.width,
        "channel_mult": model.multiples,
        "num_blocks": model.blocks,
        "attn_resolutions": model.attention,
    }
    config = valid_config(values, str(folder.file(MANIFEST)))
    for attended in model.attention:
        if attended not in config.resolutions:
            raise UserError(
                f"edm.attention: {attended}: the network has feature maps of sizes "
                f"{', '.join(map(str, config.resolutions))}"
            )
    return config


def _loader(data: Data, stream: ShardStream, classes: int, device: torch.device) -> BatchLoader:
    return BatchLoader(
        stream,
        ("image", "cls") if classes else ("image",),
        workers=data.workers,
        prefetch=data.prefetch,
        pin_memory=device.type == "cuda",
    )


def _drawer(
    name: str, pictures: ClassToImage, seed: int, ranks: Ranks
) -> Callable[[int, Path], None]:
    """What writes rows of pictures, a column a class where there are up to ten of them."""
    numbers = grid_classes(pictures.denoiser.config.label_dim, _COLUMNS)

    def draw(iteration: int, out: Path) -> None:
        images = pictures.pictures(numbers, torch.arange(len(numbers)), seed)
        if ranks.first:
            save_grid(out / f"{name}-{iteration:07d}.png", images.split(_COLUMNS))

    return draw
