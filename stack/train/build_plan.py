"""From a recipe and a number of GPUs to what the run will need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from stack.config.schema import DistillRecipe
from stack.nets.published import SD15_FROZEN
from stack.parallel.collectives import Ranks
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
from stack.train.build import micro_batches_of
from stack.train.build_cost import Flops, Imagined, count_activations, count_flops

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
            "bytes_communicated": average(self.work, sent(self.work, self.place)),
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
        config: of the teacher's UNet. gpus, node: GPUs, and how many of them a node has.
        share: of the GPU's dense rate that steps reach.
    """

    def __init__(
        self, config: dict[str, Any], gpu: Gpu, gpus: int, node: int, share: float
    ) -> None:
        self.config, self.gpu, self.gpus, self.node, self.share = config, gpu, gpus, node, share
        self._flops: Flops | None = None
        self._activations: dict[tuple[str, str, str], tuple[int, int]] = {}

    def plan(self, recipe: DistillRecipe) -> Plan:
        """Memory, time and traffic of a recipe.

        Raises:
            UserError: the GPUs do not divide its batch.
        """
        micro_batches = micro_batches_of(recipe, Ranks(world_size=self.gpus))
        self._flops = self._flops or count_flops(recipe, self.config)
        samples = recipe.batch_size // self.gpus // micro_batches
        parallel = recipe.parallel
        place = Place(
            gpu=self.gpu,
            ranks=self.gpus,
            node=self.node,
            backend=parallel.backend,
            shard=parallel.shard_size or self.gpus,
            bf16=recipe.precision == "bf16",
            teacher_sharded=parallel.teacher == "sharded",
            offload=parallel.offload,
        )
        work = self._work(recipe, self._flops, samples, micro_batches)
        return Plan(recipe, work, place, self._flops, self.share)

    def remedies(self, recipe: DistillRecipe) -> Iterator[tuple[str, Plan]]:
        """Changes of the recipe, by name, under which it fits; the cheapest in time first."""
        for name, changed in _variants(recipe, self.gpus):
            plan = self.plan(changed)
            if plan.fits:
                yield name, plan

    def _work(self, recipe: DistillRecipe, flops: Flops, samples: int, micro_batches: int) -> Work:
        joint = recipe.alternation == "joint"
        networks = Imagined(recipe, self.config, 1).networks
        sizes = [_size(part) for part in (networks.student, networks.fake, networks.heads)]
        blocks = [
            max((_size(block) for block in part.blocks()), default=0)
            for part in (networks.student, networks.fake)
        ]
        swept = micro_batches > 1
        again = {"none": 0, "selective": 0, "full": flops.forward}[recipe.compute.checkpointing]
        student = (flops.joint if joint else flops.student) + again * (2 if joint else 1)
        student += flops.sweep if swept else 0
        optim = recipe.optim
        moves = ((True, False), (joint, True), (joint, True))
        gathers = ((3 if swept else 2, 1), (3, 2), (5 if swept else 4, 2))
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
            frozen=sum(SD15_FROZEN.values()),
            averages=len(recipe.averages),
            activations=self._bytes(recipe, samples),
            flops=(student * batch, (flops.critic + again) * batch),
            student_every=recipe.student_every,
            batch=batch,
            micro_batches=micro_batches,
        )

    def _bytes(self, recipe: DistillRecipe, samples: int) -> int:
        """Activations of a micro-batch, by a line through those of one sample and of two."""
        key = (recipe.compute.checkpointing, recipe.compute.attention, recipe.precision)
        if key not in self._activations:
            one, two = (count_activations(recipe, self.config, n) for n in (1, 2))
            self._activations[key] = one, two - one
        first, each = self._activations[key]
        return first + each * (samples - 1)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _variants(recipe: DistillRecipe, gpus: int) -> Iterator[tuple[str, DistillRecipe]]:
    """Changes that save memory, one more after the other, by what they cost in time."""
    compute, parallel, optim = recipe.compute, recipe.parallel, recipe.optim
    names: list[str] = []

    def and_now(name: str, **changed: Any) -> tuple[str, DistillRecipe]:
        nonlocal recipe
        names.append(name)
        recipe = recipe.model_copy(update=changed)
        return " ".join(names), recipe

    if compute.checkpointing == "none":
        compute = compute.model_copy(update={"checkpointing": "selective"})
        yield and_now("compute.checkpointing=selective", compute=compute)
    most = recipe.parallel.micro_batch or 64
    while most > 1:
        most //= 2
        parallel = parallel.model_copy(update={"micro_batch": most, "accumulation": 1})
        names[:] = [name for name in names if "micro_batch" not in name]
        yield and_now(f"parallel.micro_batch={most}", parallel=parallel)
    if compute.checkpointing != "full":
        compute = compute.model_copy(update={"checkpointing": "full"})
        names[:] = [name for name in names if "checkpointing" not in name]
        yield and_now("compute.checkpointing=full", compute=compute)
    if parallel.backend in ("none", "ddp") and gpus > 1:
        parallel = parallel.model_copy(update={"backend": "fsdp"})
        yield and_now("parallel.backend=fsdp", parallel=parallel)
    for kind in ("adamw8bit", "paged_adamw8bit"):
        if kind == "paged_adamw8bit" and parallel.backend == "fsdp":
            continue
        changes = {n: getattr(optim, n).model_copy(update={"kind": kind}) for n in _LARGE}
        names[:] = [name for name in names if "optim" not in name]
        text = " ".join(f"optim.{name}.kind={kind}" for name in _LARGE)
        yield and_now(text, optim=optim.model_copy(update=changes))


_LARGE = ("student", "fake")
"""Networks whose optimizers are worth making small."""
