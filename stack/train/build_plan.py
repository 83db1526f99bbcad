"""From a recipe and a number of GPUs to what the run will need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from stack.config.schema import DistillRecipe, SDTeacher
from stack.data.lanes import check_divides
from stack.nets.vae import DECODING
from stack.parallel.adam import check_kind
from stack.parallel.collectives import Ranks
from stack.parallel.mesh import Layout
from stack.sample.generate import DECODED
from stack.train.budget import (
    Gpu,
    Network,
    Place,
    Work,
    average,
    checkpoint_bytes,
    memory,
    read_bytes,
    seconds,
    sent,
)
from stack.train.build import lanes_of, micro_batches_of
from stack.train.build_cost import (
    Flops,
    Imagined,
    count_activations,
    count_again,
    count_flops,
    unused_by_features,
)
from stack.train.build_subject import Subject
from stack.util.errors import UserError

_DAY = 86_400


@dataclass(frozen=True)
class Plan:
    """A recipe on GPUs. Bytes are of one GPU, rates of all."""

    recipe: DistillRecipe
    work: Work
    place: Place
    flops: Flops
    share: float

    @property
    def bytes_per_gpu(self) -> dict[str, int]:
        return memory(self.work, self.place)

    @property
    def fits(self) -> bool:
        return sum(self.bytes_per_gpu.values()) <= self.place.gpu.memory

    @property
    def iteration_seconds(self) -> float:
        return average(self.work, seconds(self.work, self.place, self.share))

    @property
    def computing_seconds(self) -> float:
        """Of an iteration, without what is sent."""
        rate = self.place.gpu.bf16 if self.place.bf16 else self.place.gpu.fp32
        return average(self.work, self.work.flops) / (rate * self.share * self.place.ranks)

    def bytes_sent(self, *, inside: bool) -> float:
        """Of a GPU in an iteration, to its node's or to other nodes."""
        with_student, without = (
            sum(part.inside if inside else part.across for part in parts)
            for parts in sent(self.work, self.place)
        )
        return average(self.work, (with_student, without))

    def days(self, iterations: int) -> float:
        return iterations * self.iteration_seconds / _DAY

    def facts(self) -> dict[str, Any]:
        """What `stack plan --json` writes."""
        iterations = self.recipe.iterations
        days, seconds_each = self.days(iterations), self.iteration_seconds
        flops = average(self.work, self.work.flops)
        return {
            "gpus": self.place.ranks,
            "fits": self.fits,
            "bytes_per_gpu": self.bytes_per_gpu,
            "memory_per_gpu": self.place.gpu.memory,
            "micro_batches": self.work.micro_batches,
            "parameters": {"unet": self.work.teacher, "heads": self.work.trained[2].parameters},
            "unet_forwards": {
                step: self.flops.in_forwards(step) for step in ("student", "critic", "joint")
            },
            "flops_per_iteration": flops,
            "flops": flops * iterations,
            "bytes_communicated": self.bytes_sent(inside=True) + self.bytes_sent(inside=False),
            "bytes_between_nodes": self.bytes_sent(inside=False),
            "share_of_peak": self.share,
            "seconds_per_iteration": seconds_each,
            "images_per_second": self.work.batch / seconds_each,
            "days": days,
            "gpu_hours": days * 24 * self.place.ranks,
            "gpu_hours_computing": iterations * self.computing_seconds * self.place.ranks / 3600,
            "days_if_student_updates": self.days(iterations * self.recipe.student_every),
            "checkpoint_bytes": checkpoint_bytes(self.work),
            "bytes_read_per_second": read_bytes(self.work, seconds_each),
        }


class Planner:
    """Plans of variants of one recipe; what is counted once serves all.

    Args:
        gpus, node: GPUs, and how many of them a node has.
        share: of the GPU's dense rate that steps reach.

    Raises:
        UserError: the share is none.
    """

    def __init__(self, subject: Subject, gpu: Gpu, gpus: int, node: int, share: float) -> None:
        if not 0 < share <= 1:
            raise UserError(f"--share: {share:g}: not above 0 and at most 1")
        self.subject, self.gpu, self.gpus, self.node, self.share = subject, gpu, gpus, node, share
        self._flops: Flops | None = None
        self._activations: dict[tuple[Any, ...], int] = {}
        self._recomputed: dict[str, int] = {}

    def plan(self, recipe: DistillRecipe) -> Plan:
        """Memory, time and traffic of a recipe.

        Raises:
            UserError: a run on so many GPUs would refuse it.
        """
        ranks, parallel = Ranks(world_size=self.gpus), recipe.parallel
        micro_batches = micro_batches_of(recipe, ranks)
        _check(recipe, ranks)
        self._flops = self._flops or count_flops(recipe, self.subject)
        samples = recipe.batch_size // self.gpus // micro_batches
        sharded = parallel.backend.startswith("zero") or (self.gpus > 1)
        place = Place(
            gpu=self.gpu,
            ranks=self.gpus,
            node=self.node,
            backend=parallel.backend,
            shard=parallel.shard_size or self.gpus,
            bf16=recipe.precision == "bf16",
            teacher_sharded=sharded and parallel.teacher == "sharded",
            offload=sharded and parallel.offload,
        )
        work = self._work(recipe, self._flops, samples, micro_batches)
        return Plan(recipe, work, place, self._flops, self.share)

    def remedies(self, changed: Callable[[list[str]], DistillRecipe]) -> Iterator[tuple[str, Plan]]:
        """Overrides of the recipe under which it fits; the cheapest in time first.

        Args:
            changed: the recipe, read with overrides as the command line has them.
        """
        for words in _variants(changed([]), self.gpus):
            try:
                plan = self.plan(changed(words))
            except UserError:
                continue  # So would the run.
            if plan.fits:
                yield " ".join(words), plan

    def _work(self, recipe: DistillRecipe, flops: Flops, samples: int, micro_batches: int) -> Work:
        joint = recipe.alternation == "joint"
        imagined = Imagined(_plain(recipe), self.subject, 1)
        networks = imagined.networks
        sizes = [_size(part) for part in (networks.student, networks.fake, networks.heads)]
        blocks = [
            max((_size(block) for block in part.blocks()), default=0)
            for part in (networks.student, networks.fake)
        ]
        swept = micro_batches > 1
        again = self._again(recipe, flops)
        student = (flops.joint if joint else flops.student) + again * (2 if joint else 1)
        student += flops.sweep if swept else 0
        optim = recipe.optim
        moves = ((True, False), (joint, True), (joint, True))
        # Forward, backward, and before them the sweep; the critics' are of their own step, or of
        # the student's, which needs the fake score without gradient and the heads with one.
        both = 2 if joint else 0
        gathers = ((2 + swept, 1), (1 + both, 2), (2 + both + swept, 2))
        cut = ", fsdp" if recipe.parallel.backend == "fsdp" else ""
        kinds = [
            kind + cut if kind == "adamw8bit" else kind
            for kind in (optim.student.kind, optim.fake.kind, optim.heads.kind)
        ]
        trained = tuple(
            Network(*row)
            for row in zip(sizes, (*blocks, sizes[2]), kinds, gathers, moves, strict=True)
        )
        batch = recipe.batch_size
        return Work(
            trained=trained,
            teacher=sizes[0],
            frozen=self.subject.frozen,
            averages=len(recipe.averages),
            activations=self._bytes(recipe, samples, swept, sum(sizes)),
            flops=(student * batch, (flops.critic + again) * batch),
            student_every=recipe.student_every,
            batch=batch,
            micro_batches=micro_batches,
            sample_bytes=self.subject.sample_bytes,
            drawn=_drawn(recipe),
            consulted=_consulted(recipe, imagined, swept=swept),
        )

    def _again(self, recipe: DistillRecipe, flops: Flops) -> int:
        mode = recipe.compute.checkpointing
        if mode not in self._recomputed:
            self._recomputed[mode] = count_again(recipe, self.subject, flops)
        return self._recomputed[mode]

    def _bytes(self, recipe: DistillRecipe, samples: int, swept: bool, trained: int) -> int:
        """Activations of a micro-batch: what the iteration's peak has beyond the gradients of all
        ``trained`` parameters."""
        if not swept and recipe.parallel.backend not in ("fsdp", "zero2", "zero3"):
            # At its own peak a gradient may not be there yet; when the optimizers step all are.
            return max(0, self._peak(recipe, samples, grown=False) - 4 * trained)
        one, two = (self._peak(recipe, n, grown=True) for n in (1, 2))
        return one + (two - one) * (samples - 1)

    def _peak(self, recipe: DistillRecipe, samples: int, *, grown: bool) -> int:
        compute = recipe.compute
        key = (compute.checkpointing, compute.attention, recipe.precision, grown, samples)
        if key not in self._activations:
            self._activations[key] = count_activations(recipe, self.subject, samples, grown=grown)
        return self._activations[key]


def _check(recipe: DistillRecipe, ranks: Ranks) -> None:
    """Refuse what a run would refuse."""
    parallel, count = recipe.parallel, ranks.world_size
    if parallel.backend == "none" and count > 1:
        raise UserError(
            f"parallel.backend: none is one process, but there are {count} GPUs; "
            "set parallel.backend=ddp"
        )
    Layout(ranks, parallel.backend, shard_size=parallel.shard_size)
    if recipe.data:
        check_divides("world_size", count, "lanes", lanes_of(recipe.data, recipe.batch_size))
    for optim in (recipe.optim.student, recipe.optim.fake, recipe.optim.heads):
        check_kind(optim.kind, sharded=parallel.backend == "fsdp")


def _plain(recipe: DistillRecipe) -> DistillRecipe:
    """On the meta device an operator of another library, and compilation, are of no use."""
    plain = recipe.compute.model_copy(update={"attention": "sdpa", "compile": False})
    return recipe.model_copy(update={"compute": plain})


def _consulted(recipe: DistillRecipe, imagined: Imagined, *, swept: bool) -> tuple[int, int]:
    """Parameters of the teacher that a micro-batch uses, as Work has them: whole for a score, as
    far as the deepest feature for features, and once more for their gradient."""
    if recipe.parallel.teacher != "sharded":
        return 0, 0
    teacher = imagined.networks.teacher
    assert isinstance(teacher, nn.Module)
    whole = encoder = _size(teacher)
    for block in unused_by_features(imagined):
        encoder -= _size(block)
    scores = whole * (1 if recipe.guidance == 1 else 2)
    if recipe.gan.features != "teacher":
        return scores, 0
    student = scores + encoder * ((recipe.gan.weight > 0) + swept)
    return student + (encoder if recipe.alternation == "joint" else 0), encoder


def _drawn(recipe: DistillRecipe) -> int:
    """Bytes at the peak of a sample grid, which the autoencoder needs."""
    if not recipe.log.sample_every or not isinstance(recipe.teacher, SDTeacher):
        return 0
    return DECODED * DECODING[recipe.precision]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _variants(recipe: DistillRecipe, gpus: int) -> Iterator[list[str]]:
    """Overrides that save memory, one more after the other, by what they cost in time."""
    compute, parallel = recipe.compute, recipe.parallel
    words: dict[str, str] = {}

    def and_now(**changed: str) -> list[str]:
        words.update({name.replace("__", "."): value for name, value in changed.items()})
        return [f"{name}={value}" for name, value in words.items()]

    if compute.checkpointing == "none":
        yield and_now(compute__checkpointing="selective")
    if parallel.accumulation > 1:
        words["parallel.accumulation"] = "1"  # Micro-batches are given by their size instead.
    most = parallel.micro_batch or 64
    while most > 1:
        most //= 2
        yield and_now(parallel__micro_batch=str(most))
    if compute.checkpointing != "full":
        yield and_now(compute__checkpointing="full")
    fsdp = parallel.backend == "fsdp"
    if parallel.backend in ("none", "ddp") and gpus > 1:
        fsdp = True
        yield and_now(parallel__backend="fsdp")
    for kind in ("adamw8bit",) if fsdp else ("adamw8bit", "paged_adamw8bit"):
        yield and_now(optim__student__kind=kind, optim__fake__kind=kind)
    if recipe.averages:
        yield and_now(ema="0")  # Last, for it changes what is trained: the average is gone.
