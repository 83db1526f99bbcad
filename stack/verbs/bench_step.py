"""``stack bench step``: how long a distillation's steps take here, and what they cost."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stack.config.schema import DistillRecipe
from stack.evaluate.latency import device_name
from stack.fdistill.algorithm import Batch
from stack.parallel.collectives import ALONE
from stack.parallel.memory import PeakBytes
from stack.train.budget import gpu_named
from stack.train.build import layout_of, micro_batches_of
from stack.train.build_algorithm import assemble
from stack.train.build_cost import count_flops
from stack.train.build_subject import Subject
from stack.train.flops import Flops
from stack.util.errors import UserError, reason
from stack.util.files import write_json

STEPS = ("student", "critic", "joint")
_PRODUCT = {"cuda": 8192, "cpu": 1024}
"""Side of the square matrices whose product's rate is what steps are compared with."""


@dataclass
class Times:
    """Of one kind of step, each repeat."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


class Steps:
    """The steps of a recipe on random data, with random weights.

    Args:
        batch: samples of a step, in micro-batches as the recipe has them.
    """

    def __init__(self, recipe: DistillRecipe, subject: Subject, batch: int) -> None:
        recipe = _with_batch(recipe, batch)
        count = micro_batches_of(recipe, ALONE)
        self.layout = layout = layout_of(recipe, micro_batches=count)
        self.device = layout.device
        with torch.random.fork_rng():
            torch.manual_seed(0)
            networks = subject.networks(recipe, layout)
        self.task = assemble(recipe, layout, networks, lambda *_: None, dict)
        random = torch.Generator(self.device).manual_seed(0)

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(batch, *shape, generator=random, device=self.device)

        positions = torch.arange(batch, device=self.device)
        whole = (positions, normal(subject.x0), normal(subject.c), normal(subject.c))
        parts = (value.chunk(count) for value in whole)
        self.batches = [Batch(*rows) for rows in zip(*parts, strict=True)]

    def step(self, name: str) -> None:
        """One iteration, of the student, of the critics, or of both."""
        algorithm = self.task.algorithm
        iteration, algorithm.alternation, algorithm.student_every = _TURNS[name]
        _, stepped = self.task.iteration(iteration, self.batches)
        if not stepped:
            raise UserError(
                f"{name} step: a loss or a gradient is not finite; what optim, gan and guidance "
                "say does not suit random weights"
            )

    def timed(self, name: str, times: Times) -> None:
        """One iteration, until the device is done with it."""
        _wait(self.device)
        cpu, start = time.process_time(), time.perf_counter()
        self.step(name)
        _wait(self.device)
        times.seconds.append(time.perf_counter() - start)
        times.cpu_seconds.append(time.process_time() - cpu)

    def peak_bytes(self, name: str) -> int:
        """The most that an iteration has allocated: of the GPU's allocator, or of all tensors."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step(name)
            return torch.cuda.max_memory_allocated(self.device)
        with PeakBytes(self.held()) as memory:
            self.step(name)
        return memory.peak

    def held(self) -> Iterator[Tensor]:
        """What is there between iterations, when gradients are cleared; some of it twice."""
        algorithm = self.task.algorithm
        for network in (algorithm.student, algorithm.fake, algorithm.heads, algorithm.teacher):
            yield from network.parameters()  # type: ignore[union-attr,attr-defined]
        yield from self.task.tensors().values()


def _with_batch(recipe: DistillRecipe, batch: int) -> DistillRecipe:
    assert recipe.data
    data = recipe.data.model_copy(update={"global_batch": batch})
    return recipe.model_copy(update={"data": data})


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_TURNS = {"student": (1, "exclusive", 2), "critic": (0, "exclusive", 2), "joint": (0, "joint", 1)}
"""An iteration in which it is a step's turn, the alternation, and the student's k."""


class Setting(NamedTuple):
    """What is timed, and under which name."""

    name: str
    recipe: DistillRecipe
    subject: Subject


def bench_step(
    settings: Sequence[Setting],
    *,
    batch: int,
    repeats: int,
    profile: Path | None = None,
    json_file: Path | None = None,
) -> None:
    """Time the steps of one setting, or of several by turns, and print and write what was found.
    One of them at a time is in memory; each has up to three turns.

    Args:
        profile: where the trace of a joint step of the first setting goes.

    Raises:
        UserError: a recipe is for several processes, or is there twice; a GPU's memory does not
            suffice; a loss is not finite.
    """
    _check(settings, batch, profile)
    times = {one.name: {step: Times() for step in STEPS} for one in settings}
    found: dict[str, dict[str, Any]] = {}
    turns = min(_MOST_TURNS, repeats) if len(settings) > 1 else 1
    for turn in range(turns):
        for name, recipe, subject in settings:
            with _told_of_memory(name):
                steps = Steps(recipe, subject, batch)
                # For compilation, allocation and the clocks.
                _run(steps, 1 if turn else 2, {step: Times() for step in STEPS})
                _run(steps, len(range(turn, repeats, turns)), times[name])
                if turn == turns - 1:
                    flops = count_flops(recipe, subject)
                    found[name] = _facts(recipe, steps, times[name], flops, batch)
                    if profile and name == settings[0].name:
                        _trace(steps, profile)
            del steps
            gc.collect()
            torch.cuda.empty_cache()
    for name, facts in found.items():
        print("\n".join(_lines(name, facts)))
    (first, *others) = found.values()
    for name, facts in list(found.items())[1:]:
        ratio = facts["joint"]["seconds"] / first["joint"]["seconds"]
        print(f"joint step of {name}: {ratio:.3f} times as long as of {settings[0].name}")
    if profile:
        whose = f"a joint step of {settings[0].name}" if others else "a joint step"
        print(f"{profile}: trace of {whose}")
    if json_file:
        write_json(json_file, first if not others else found)


_MOST_TURNS = 3


def _check(settings: Sequence[Setting], batch: int, profile: Path | None) -> None:
    """Refuse before anything is timed."""
    names = [one.name for one in settings]
    if len(set(names)) < len(names):
        raise UserError(f"--compare: {names[0]}: the two settings are the same")
    for _, recipe, _ in settings:
        backend = recipe.parallel.backend
        if backend not in ("none", "ddp"):
            raise UserError(
                f"parallel.backend: {backend} cuts what several processes hold, and stack bench "
                "step is one; set parallel.backend=none"
            )
        micro_batches_of(_with_batch(recipe, batch), ALONE)
    if profile:
        try:
            profile.parent.mkdir(parents=True, exist_ok=True)
            profile.write_text("")
        except OSError as error:
            raise UserError(f"--profile: {profile}: {error.strerror}") from None


@contextmanager
def _told_of_memory(name: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{name}: the GPU's memory does not suffice; set a smaller parallel.micro_batch, or "
            f"compute.checkpointing=selective ({reason(error)})"
        ) from None


def _run(steps: Steps, repeats: int, times: dict[str, Times]) -> None:
    for _ in range(repeats):
        for step in STEPS:
            steps.timed(step, times[step])


def _facts(
    recipe: DistillRecipe, steps: Steps, times: dict[str, Times], flops: Flops, batch: int
) -> dict[str, Any]:
    rate, bf16 = _product_rate(steps.device, steps.layout.bf16), steps.layout.bf16
    device, count = device_name(steps.device), len(steps.batches)
    found: dict[str, Any] = {"device": device, "batch": batch, "micro_batches": count}
    known = gpu_named(device) if steps.device.type == "cuda" else None
    peak = (known.bf16 if bf16 else known.fp32) if known else None
    for name in STEPS:
        sweep = flops.sweep if count > 1 and name != "critic" else 0
        work = (getattr(flops, name) + sweep) * batch
        seconds = statistics.median(times[name].seconds)
        found[name] = {
            "seconds": seconds,
            "cpu_seconds": statistics.median(times[name].cpu_seconds),
            "flops": work,
            "flops_per_second": work / seconds,
            "share_of_product_rate": work / seconds / rate,
            "share_of_peak": work / seconds / peak if peak else None,
            "unet_forwards": work / batch / flops.forward,
            "peak_bytes": steps.peak_bytes(name),
        }
    k = recipe.student_every
    moving = found["joint" if recipe.alternation == "joint" else "student"]["seconds"]
    found["product_flops_per_second"] = rate
    found["images_per_second"] = batch * k / (moving + (k - 1) * found["critic"]["seconds"])
    found["process_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return found


def _product_rate(device: torch.device, bf16: bool) -> float:
    """FLOP/s of a product of large square matrices, in the precision that the networks run in."""
    side = _PRODUCT[device.type]
    kind = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))

    best = float("inf")
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        _wait(device)
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * side**3 / best


def _trace(steps: Steps, file: Path) -> None:
    """A trace of one joint iteration, for chrome://tracing or Perfetto."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if steps.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        steps.step("joint")
    found.export_chrome_trace(str(file))


def _lines(name: str, facts: dict[str, Any]) -> list[str]:
    rows = [
        f"{name}: {facts['device']}, batch {facts['batch']} = {facts['micro_batches']} x "
        f"{facts['batch'] // facts['micro_batches']}",
        f"{'step':10}{'seconds':>10}{'CPU s':>10}{'forwards':>10}{'TFLOP/s':>10}{'of product':>12}"
        f"{'of peak':>9}{'memory':>12}",
    ]
    for step in STEPS:
        row = facts[step]
        rows.append(
            f"{step:10}{row['seconds']:10.3f}{row['cpu_seconds']:10.3f}"
            f"{row['unet_forwards']:10.2f}{row['flops_per_second'] / 1e12:10.3f}"
            f"{row['share_of_product_rate']:12.0%}{_share(row['share_of_peak']):>9}"
            f"{row['peak_bytes'] / 2**30:8.2f} GiB"
        )
    return [*rows, f"{facts['images_per_second']:.2f} images/s at the recipe's ratio", ""]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
