"""Composition of the algorithm, whatever its networks are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stack.checkpoint.folders import is_step, step_of
from stack.checkpoint.verify import checkpoint_of
from stack.config.load import stored_recipe
from stack.config.schema import DistillRecipe
from stack.diffusion.timesteps import UniformTimes
from stack.fdistill.algorithm import FDistill
from stack.fdistill.contracts import Denoiser, Trained
from stack.fdistill.divergence import DIVERGENCES
from stack.fdistill.ratio import RatioNormalizer, RatioWeight
from stack.nets.compilation import compile_blocks
from stack.nets.edm import EdmDenoiser
from stack.nets.ema import EMA
from stack.nets.heads import ConvHead, MultiHead
from stack.nets.recompute import recompute
from stack.nets.sd15 import SDDenoiser
from stack.nets.toy import SkewedDenoiser, SkewedStudent
from stack.parallel.collectives import ALONE, Ranks
from stack.parallel.fsdp import shard
from stack.parallel.local import LocalWeights
from stack.parallel.mesh import Layout
from stack.train.build_stored import stored_weights
from stack.train.distill import DistillTask
from stack.train.optim import adam_weights
from stack.util.errors import UserError

ENTRIES = ("features", "x0_and_features")
"""How a denoiser is called besides forward."""


class Networks(NamedTuple):
    """What a distillation is made of."""

    student: SDDenoiser | EdmDenoiser | SkewedStudent
    fake: SDDenoiser | EdmDenoiser | SkewedDenoiser
    teacher: Denoiser
    heads: MultiHead


def networks_around(
    teacher: SDDenoiser | EdmDenoiser, recipe: DistillRecipe, layout: Layout
) -> Networks:
    """Student and fake score as copies of a teacher (float32, on the layout's device), heads on
    its features, and all of them as the recipe has them computed."""
    student, fake = copy.deepcopy(teacher), copy.deepcopy(teacher)
    for network in (student, fake):
        recompute(network.blocks(), recipe.compute.checkpointing)
    for network in (student, fake, teacher) if recipe.compute.compile else ():
        compile_blocks(network.blocks())
    _settle_teacher(teacher, recipe.parallel.teacher, layout)
    heads = MultiHead(
        [ConvHead(channels, recipe.gan.width) for channels in teacher.feature_channels],
        bf16=layout.bf16,
    ).to(layout.device)
    return Networks(student, fake, teacher, heads)


def _settle_teacher(teacher: SDDenoiser | EdmDenoiser, where: str, layout: Layout) -> None:
    """Freeze the teacher: whole on every rank or cut over them, in the precision it runs in."""
    teacher.requires_grad_(False)
    if layout.bf16:
        teacher.to(torch.bfloat16)
    if where == "sharded" and layout.ranks.world_size > 1:
        shard(teacher, teacher.blocks(), layout.mesh, methods=ENTRIES, offload=layout.offload)


def assemble(
    recipe: DistillRecipe,
    layout: Layout,
    networks: Networks,
    draw: Callable[[int, Path], None],
    measure: Callable[[], Mapping[str, float]],
) -> DistillTask:
    """The algorithm around its networks, the same for every kind of teacher.

    Args:
        draw, measure: as :class:`DistillTask` takes them.
    """
    _check_times(recipe, networks.teacher.schedule.steps)
    weights = _weights(recipe, layout, networks)
    own = weights[0]
    averages = {
        f"ema_{decay:g}": EMA(own.pieces(), decay, own.refresh) for decay in recipe.averages
    }
    start = warm_start(recipe.init_from, layout.ranks)
    return DistillTask(
        recipe.name,
        recipe.iterations,
        algorithm_of(recipe, layout, networks, weights),
        weights,
        averages,
        draw,
        measure,
        start,
    )


def algorithm_of(
    recipe: DistillRecipe,
    layout: Layout,
    networks: Networks,
    weights: tuple[Trained, Trained, Trained],
) -> FDistill:
    """The algorithm of a recipe, over networks and the weights of student, fake score, heads."""
    schedule, score_times = networks.teacher.schedule, UniformTimes(*recipe.times.score)
    edges = score_times.log_snr_edges(schedule, recipe.ratio.bins).to(layout.device)
    return FDistill(
        *networks,
        *weights,
        ratio=_ratio(recipe, edges),
        score_times=score_times,
        fake_times=UniformTimes(*recipe.times.fake),
        global_batch=recipe.batch_size,
        seed=recipe.seed,
        guidance=recipe.guidance,
        gan_weight=recipe.gan.weight,
        r1_gamma=recipe.gan.r1_gamma,
        r1_noise=recipe.gan.r1_noise,
        feature_source=recipe.gan.features,
        alternation=recipe.alternation,
        student_every=recipe.student_every,
        logit_clamp=recipe.ratio.logit_clamp,
        r_min=recipe.ratio.r_min,
        r_max=recipe.ratio.r_max,
        all_reduce_mean=layout.ranks.all_reduce_mean,
    )


def _weights(
    recipe: DistillRecipe, layout: Layout, networks: Networks
) -> tuple[LocalWeights, LocalWeights, LocalWeights]:
    """Student, fake score and heads, ready to train."""
    k, total, optim = recipe.student_every, recipe.iterations, recipe.optim
    critic_steps = total if recipe.alternation == "joint" else total - total // k
    student = adam_weights(
        "student",
        networks.student,
        layout,
        blocks=networks.student.blocks(),
        total=total // k,
        **optim.student.model_dump(),
    )
    fake = adam_weights(
        "fake",
        networks.fake,
        layout,
        blocks=networks.fake.blocks(),
        methods=ENTRIES,
        total=critic_steps,
        **optim.fake.model_dump(),
    )
    heads = adam_weights(
        "heads", networks.heads, layout, total=critic_steps, **optim.heads.model_dump()
    )
    return student, fake, heads


def _ratio(recipe: DistillRecipe, edges: Tensor) -> RatioWeight:
    return RatioWeight(
        DIVERGENCES[recipe.divergence],
        RatioNormalizer(edges, decay=recipe.ratio.decay, prior=recipe.ratio.prior),
        normalize_r=recipe.ratio.normalize_r,
        normalize_h=recipe.ratio.normalize_h,
        warmup=recipe.ratio.warmup,
        ramp=recipe.ratio.ramp,
    )


def _check_times(recipe: DistillRecipe, steps: int) -> None:
    for name, (_, last) in recipe.times.model_dump().items():
        if last >= steps:
            raise UserError(
                f"times.{name}: ends at {last}, but the teacher's last time is {steps - 1}"
            )


def warm_start(
    init_from: str | None, ranks: Ranks = ALONE
) -> Callable[[Sequence[LocalWeights]], None]:
    """What fills the weights of a run that starts with those of another's checkpoint: the last of
    a run that has ended, or any that is named."""

    def start(networks: Sequence[LocalWeights]) -> None:
        if init_from is None:
            return
        folder = checkpoint_of(Path(init_from), "init_from: ", ranks)
        if not is_step(Path(init_from)):
            check_ended(Path(init_from), folder)
        if ranks.first:
            print(f"init_from: {folder}")
        for weights in networks:
            try:
                weights.write(stored_weights(folder, weights.name))
            except UserError as error:
                raise UserError(f"init_from: {folder}: {error}") from None

    return start


def check_ended(run: Path, newest: Path) -> None:
    """Refuse a run that has iterations to go: what starts from it by its name wants its end."""
    try:
        recipe = stored_recipe(run)
    except UserError as error:
        raise UserError(f"init_from: {error}") from None
    if not isinstance(recipe, DistillRecipe):
        raise UserError(f"init_from: {run}: job: {recipe.job}: not a run of stack distill")
    if step_of(newest) < recipe.iterations:
        raise UserError(
            f"init_from: {run}: not at its end: the newest whole checkpoint is of iteration "
            f"{step_of(newest)} of {recipe.iterations}; go on with that run by --resume, or name "
            f"the checkpoint to take: init_from={newest}"
        )
