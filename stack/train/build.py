"""Composition: the one place where a recipe becomes networks, data and a task."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stack.config.schema import Data, DistillRecipe, Mixture2DTeacher, SDTeacher
from stack.data.batch import BatchLoader
from stack.data.cache import ShardCache
from stack.data.index import MANIFEST
from stack.data.storage import expand_variables, is_url
from stack.data.stream import ShardStream
from stack.diffusion.schedule import DiscreteSchedule
from stack.diffusion.timesteps import UniformTimes
from stack.fdistill.algorithm import Denoiser, FDistill
from stack.fdistill.divergence import DIVERGENCES
from stack.fdistill.ratio import RatioNormalizer, RatioWeight
from stack.nets.ema import EMA
from stack.nets.heads import ConvHead, MultiHead, VectorHead
from stack.nets.sd15 import SDDenoiser, load_schedule, load_unet
from stack.nets.text import load_text, tokenizer_hash
from stack.nets.toy import (
    FEATURE_CHANNELS,
    MixtureDenoiser,
    SkewedDenoiser,
    SkewedStudent,
    ring,
)
from stack.nets.vae import from_uint8, load_vae, vae_hash
from stack.parallel.collectives import ALONE, Ranks
from stack.sample.generate import TextToImage, generate
from stack.sample.grid import save_grid
from stack.train.distill import DistillTask
from stack.train.optim import adam_weights
from stack.train.sources import KeyedSource, LatentSource
from stack.train.trainer import Source, Task
from stack.util import keyed
from stack.util.errors import UserError

_LANES = 256
"""Lanes by default: the largest divisor of the batch up to this. A process that reads them all
has about as many shards open."""
_DRAWN_POINTS = 2000
"""Samples in a picture of the two-dimensional example."""
_REACH = 3.0
"""Standard deviations from a mode's centre within which a sample belongs to it."""


@dataclass
class Job:
    """What a verb hands to the trainer."""

    task: Task
    source: Source


def device_of(name: str) -> torch.device:
    """The device a recipe names."""
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        local, present = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= present:
            raise UserError(
                f"device: auto: no GPU for rank {local} of this machine, which has {present}; "
                "start fewer processes, or set device=cpu"
            )
        return torch.device("cuda", local)
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: {name}: {reason}; device=auto takes what there is") from None


def stream_of(
    data: Data, seed: int, *, ranks: Ranks = ALONE, batch: int | None = None
) -> ShardStream:
    """This rank's sample stream of a data section."""
    size = batch or data.global_batch
    return ShardStream(
        data.folders,
        global_batch=size,
        lanes=data.lanes or max(n for n in range(1, _LANES + 1) if size % n == 0),
        seed=seed,
        window=data.window,
        weights=data.weights,
        rank=ranks.rank,
        world_size=ranks.world_size,
        cache=cache_of(data),
        retries=data.retries,
    )


def cache_of(data: Data) -> ShardCache | None:
    """The node's cache of remote shards, where a data section names any."""
    if not any(is_url(expand_variables(folder)) for folder in data.folders):
        return None
    folder = data.cache or f"{tempfile.gettempdir()}/f-distill-shards-{os.getuid()}"
    return ShardCache(Path(expand_variables(folder)), int(data.cache_gb * 1e9))


def build_distill(recipe: DistillRecipe, ranks: Ranks = ALONE) -> Job:
    """Everything ``stack distill`` trains."""
    torch.manual_seed(recipe.seed)
    parts = ranks.world_size * recipe.parallel.accumulation
    if recipe.batch_size % parts:
        raise UserError(
            f"parallel.accumulation: {ranks.world_size} ranks of {recipe.parallel.accumulation} "
            f"micro-batches do not divide the global batch {recipe.batch_size}"
        )
    builders = {"sd": _build_sd, "mixture2d": _build_mixture}
    return builders[recipe.teacher.kind](recipe, device_of(recipe.device), ranks)


def assemble(
    recipe: DistillRecipe,
    ranks: Ranks,
    student: nn.Module,
    fake: SDDenoiser | SkewedDenoiser,
    teacher: Denoiser,
    heads: MultiHead,
    draw: Callable[[int, Path], None],
) -> DistillTask:
    """The algorithm around its networks, the same for every kind of teacher."""
    k, total = recipe.student_every, recipe.iterations
    critic_steps = total if recipe.alternation == "joint" else total - total // k
    optim = recipe.optim
    weights = (
        adam_weights("student", student, ranks, total=total // k, **optim.student.model_dump()),
        adam_weights("fake", fake, ranks, total=critic_steps, **optim.fake.model_dump()),
        adam_weights("heads", heads, ranks, total=critic_steps, **optim.heads.model_dump()),
    )
    average = EMA(student, recipe.ema) if recipe.ema else None
    for name, (_, last) in recipe.times.model_dump().items():
        if last >= teacher.schedule.steps:
            raise UserError(
                f"times.{name}: ends at {last}, but the teacher's last time is "
                f"{teacher.schedule.steps - 1}"
            )
    score_times = UniformTimes(*recipe.times.score)
    edges = score_times.log_snr_edges(teacher.schedule, recipe.ratio.bins)
    ratio = RatioWeight(
        DIVERGENCES[recipe.divergence],
        RatioNormalizer(edges, decay=recipe.ratio.decay, prior=recipe.ratio.prior),
        normalize_r=recipe.ratio.normalize_r,
        normalize_h=recipe.ratio.normalize_h,
        warmup=recipe.ratio.warmup,
        ramp=recipe.ratio.ramp,
    )
    algorithm = FDistill(
        student,
        fake,
        teacher,
        heads,
        *weights,
        ratio=ratio,
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
        student_every=k,
        logit_clamp=recipe.ratio.logit_clamp,
        r_min=recipe.ratio.r_min,
        r_max=recipe.ratio.r_max,
        all_reduce_mean=ranks.all_reduce_mean,
    )
    return DistillTask(recipe.name, total, algorithm, weights, average, draw)


def _build_sd(recipe: DistillRecipe, device: torch.device, ranks: Ranks) -> Job:
    assert isinstance(recipe.teacher, SDTeacher)
    assert recipe.data
    folder = Path(recipe.teacher.path)
    schedule, parameterization = load_schedule(folder)
    text, vae = load_text(folder).to(device), load_vae(folder).to(device)
    teacher = SDDenoiser(
        load_unet(folder),
        schedule,
        parameterization,
        resolutions=recipe.gan.resolutions,
        bf16=recipe.precision == "bf16",
    ).to(device)
    student, fake = copy.deepcopy(teacher), copy.deepcopy(teacher)
    teacher.requires_grad_(False)
    heads = MultiHead(
        [ConvHead(channels, recipe.gan.width) for channels in teacher.feature_channels],
        bf16=recipe.precision == "bf16",
    ).to(device)

    stream = stream_of(recipe.data, recipe.seed, ranks=ranks)
    _check_makers(stream, folder)
    _check_size(stream, vae.factor, teacher.unet.config.sample_size)

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
    source = LatentSource(
        loader,
        text,
        scale=vae.scale,
        samples=recipe.batch_size,
        accumulation=recipe.parallel.accumulation,
        device=device,
    )
    pictures = TextToImage(student, text, vae)
    captions = prompts_of(recipe) if recipe.log.sample_every else []

    def draw(iteration: int, out: Path) -> None:
        images = generate(pictures, captions, seed=recipe.seed, batch=len(captions))
        save_grid(out / f"student-{iteration:07d}.png", images.split(10))

    return Job(assemble(recipe, ranks, student, fake, teacher, heads, draw), source)


def _build_mixture(recipe: DistillRecipe, device: torch.device, ranks: Ranks) -> Job:
    assert isinstance(recipe.teacher, Mixture2DTeacher)
    given, schedule = recipe.teacher, DiscreteSchedule.scaled_linear()
    centres = ring(given.modes, given.radius)
    teacher = MixtureDenoiser(schedule, centres, given.std).to(device)
    start = (schedule, given.start, given.start_std)
    student = SkewedStudent(*start, given.student_width).to(device)
    fake = SkewedDenoiser(*start, given.width).to(device)
    heads = MultiHead([VectorHead(FEATURE_CHANNELS, recipe.gan.width)]).to(device)

    def data(iteration: int, positions: Tensor) -> Tensor:
        return teacher.sample(positions, seed=recipe.seed, iteration=iteration)

    everyone = torch.arange(recipe.batch_size, device=device)
    source = KeyedSource(
        data,
        samples=recipe.batch_size,
        positions=everyone.chunk(ranks.world_size)[ranks.rank],
        accumulation=recipe.parallel.accumulation,
    )

    shown = torch.arange(_DRAWN_POINTS, device=device)
    z = keyed.normal((2,), seed=recipe.seed, iteration=0, role="sample", positions=shown)
    stages: dict[int, np.ndarray] = {}

    @torch.no_grad()
    def points() -> np.ndarray:
        last = torch.full_like(shown, schedule.steps - 1)
        return student(z, last, z[:, :0]).cpu().numpy()

    stages[0] = points()

    def draw(iteration: int, out: Path) -> None:
        """From the start to here, beside the data; a resumed run draws what it has seen."""
        from stack.report.figures import scatter_modes

        stages[iteration] = points()
        real, reach = data(0, shown).cpu().numpy(), _REACH * given.std
        rows: dict[str, dict[int, np.ndarray]] = {recipe.divergence: stages}
        scatter_modes(out / "modes.png", real, rows, centres.numpy(), reach=reach)

    return Job(assemble(recipe, ranks, student, fake, teacher, heads, draw), source)


def prompts_of(recipe: DistillRecipe) -> list[str]:
    """The prompts of sample grids: the recipe's, or else the first captions of its data."""
    if recipe.log.prompts or not recipe.data:
        return recipe.log.prompts
    batch = next(iter(BatchLoader(stream_of(recipe.data, recipe.seed), ("text",))))
    return list(dict.fromkeys(batch["text"]))[:10]


def _check_size(stream: ShardStream, factor: int, size: int) -> None:
    """Refuse latents of another size than the UNet's own."""
    for folder, manifest in stream.manifests.items():
        if manifest.resolution and manifest.resolution != size * factor:
            raise UserError(
                f"{folder.file(MANIFEST)}: resolution: {manifest.resolution}, but the teacher's is "
                f"{size * factor}; prepare shards of that size"
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
