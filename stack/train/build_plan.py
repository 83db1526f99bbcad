"""From a recipe and a number of GPUs to what the run will need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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
    computing,
    memory,
    read_bytes,
    seconds,
    sent,
    text_seconds,
)
from stack.train.build import lanes_of, micro_batches_of
from stack.train.build_cost import (
    Sizes,
    Tell,
    count_activations,
    count_again,
    count_flops,
    count_sizes,
    quiet,
)
from stack.train.build_subject import Subject
from stack.train.flops import Flops
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
        return average(self.work, computing(self.work, self.place, self.share))

    @property
    def text_seconds(self) -> float:
        """Of an iteration, for its captions."""
        return text_seconds(self.work, self.place, self.share)

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
            "text_flops_per_iteration": self.work.text_flops,
            "text_seconds_per_iteration": self.text_seconds,
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
        tell: of what is counted, as it begins.

    Raises:
        UserError: the share is none.
    """

    def __init__(
        self,
        subject: Subject,
        gpu: Gpu,
        gpus: int,
        node: int,
        share: float,
        tell: Tell = quiet,
    ) -> None:
        if not 0 < share <= 1:
            raise UserError(f"--share: {share:g}: not above 0 and at most 1")
        self.subject, self.gpu, self.gpus, self.node, self.share = subject, gpu, gpus, node, share
        self.tell = tell

    def plan(self, recipe: DistillRecipe) -> Plan:
        """Memory, time and traffic of a recipe.

        Raises:
            UserError: a run on so many GPUs would refuse it.
        """
        ranks, parallel = Ranks(world_size=self.gpus), recipe.parallel
        micro_batches = micro_batches_of(recipe, ranks)
        _check(recipe, ranks)
        flops = count_flops(recipe, self.subject, self.tell)
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
        work = self._work(recipe, flops, samples, micro_batches)
        return Plan(recipe, work, place, flops, self.share)

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
        joint, swept = recipe.alternation == "joint", micro_batches > 1
        sizes = count_sizes(recipe, self.subject)
        again = count_again(recipe, self.subject, self.tell)
        student = flops.joint + again.joint if joint else flops.student + again.student
        student += flops.sweep if swept else 0
        trained = _trained(recipe, sizes, swept=swept)
        batch = recipe.batch_size
        return Work(
            trained=trained,
            teacher=sizes.network,
            frozen=self.subject.frozen,
            averages=len(recipe.averages),
            activations=self._bytes(recipe, samples, swept, sum(n.parameters for n in trained)),
            flops=(student * batch, (flops.critic + again.critic) * batch),
            student_every=recipe.student_every,
            batch=batch,
            micro_batches=micro_batches,
            sample_bytes=self.subject.sample_bytes,
            drawn=_drawn(recipe),
            consulted=_consulted(recipe, sizes, swept=swept),
            text_flops=self.subject.text_flops * batch,
        )

    def _bytes(self, recipe: DistillRecipe, samples: int, swept: bool, trained: int) -> int:
        """Activations of a micro-batch: what the iteration's peak has beyond the gradients of all
        ``trained`` parameters."""
        if not swept and recipe.parallel.backend not in ("fsdp", "zero2", "zero3"):
            # At its own peak a gradient may not be there yet; when the optimizers step all are.
            return max(0, self._peak(recipe, samples, grown=False) - 4 * trained)
        one, two = (self._peak(recipe, n, grown=True) for n in (1, 2))
        return one + (two - one) * (samples - 1)

    def _peak(self, recipe: DistillRecipe, samples: int, *, grown: bool) -> int:
        return count_activations(recipe, self.subject, samples, grown=grown, tell=self.tell)


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


def _trained(recipe: DistillRecipe, sizes: Sizes, *, swept: bool) -> tuple[Network, ...]:
    """Student, fake score and heads. By fdistill/algorithm.py, a part is gathered for each forward,
    and for each backward that goes through it."""
    joint, pulled = recipe.alternation == "joint", recipe.gan.weight > 0
    own, taught = recipe.gan.features != "teacher", recipe.gan.features == "fake_joint"
    fsdp, size, heads = recipe.parallel.backend == "fsdp", sizes.network, sizes.heads
    encoder = own * (sizes.encoder if fsdp else sizes.reached)  # Of the fake score.
    # A student step: the fake score's forward and the heads', and a backward from the heads to the
    # features' input for the GAN loss; before it a sweep through student, encoder and heads.
    seen, judged = size + encoder * (pulled + swept), heads * (1 + pulled + swept)
    # A critic step: forward and backward of both; the encoder's for the discriminator.
    seen_by_critics, judged_by_critics = 2 * size + encoder * (1 + taught), 2 * heads
    learned = size + taught * sizes.reached
    optim = recipe.optim
    kinds = [
        f"{kind}, fsdp" if fsdp and kind == "adamw8bit" else kind
        for kind in (optim.student.kind, optim.fake.kind, optim.heads.kind)
    ]
    gathered = (
        (size * (2 + swept), size),
        (seen + joint * seen_by_critics, seen_by_critics),
        (judged + joint * judged_by_critics, judged_by_critics),
    )
    reached = ((size, 0), (joint * learned, learned), (joint * heads, heads))
    blocks, parameters = (sizes.block, sizes.block, heads), (size, size, heads)
    rows = zip(parameters, blocks, kinds, gathered, reached, strict=True)
    return tuple(Network(*row) for row in rows)


def _consulted(recipe: DistillRecipe, sizes: Sizes, *, swept: bool) -> tuple[int, int]:
    """Parameters of the teacher that a micro-batch uses, as Work has them: whole for a score, as
    far as the deepest feature for features, and once more for their gradient."""
    if recipe.parallel.teacher != "sharded":
        return 0, 0
    scores = sizes.network * (1 if recipe.guidance == 1 else 2)
    if recipe.gan.features != "teacher":
        return scores, 0
    student = scores + sizes.encoder * ((recipe.gan.weight > 0) + swept)
    return student + (sizes.encoder if recipe.alternation == "joint" else 0), sizes.encoder


def _drawn(recipe: DistillRecipe) -> int:
    """Bytes at the peak of a sample grid, which the autoencoder needs."""
    if not recipe.log.sample_every or not isinstance(recipe.teacher, SDTeacher):
        return 0
    return DECODED * DECODING[recipe.precision]


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
