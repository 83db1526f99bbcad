"""``stack bench step``: how long a distillation's steps take here, and what they cost."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stack.config.schema import DistillRecipe
from stack.diffusion.schedule import DiscreteSchedule
from stack.evaluate.latency import device_name
from stack.fdistill.algorithm import Batch
from stack.nets.published import TOKENS, new_unet
from stack.parallel.memory import PeakBytes
from stack.train.build import layout_of
from stack.train.build_algorithm import assemble
from stack.train.build_cost import Flops, count_flops
from stack.train.build_sd import sd_networks
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
    """The steps of a recipe on random data, with a UNet of random weights.

    Args:
        config: of the UNet. batch: samples of a step.
    """

    def __init__(self, recipe: DistillRecipe, config: dict[str, Any], batch: int) -> None:
        self.layout = layout = layout_of(recipe)
        self.device = layout.device
        with torch.random.fork_rng():
            torch.manual_seed(0)
            unet = new_unet(config, str(self.device))
        schedule = DiscreteSchedule.scaled_linear()
        networks = sd_networks(recipe, unet, schedule, "epsilon", layout)
        self.task = assemble(recipe, layout, networks, lambda *_: None, dict)
        random = torch.Generator(self.device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(batch, *shape, generator=random, device=self.device)

        size, width = config["sample_size"], config["cross_attention_dim"]
        x0 = normal(config["in_channels"], size, size)
        positions = torch.arange(batch, device=self.device)
        self.batch = Batch(positions, x0, normal(TOKENS, width), normal(TOKENS, width))

    def step(self, name: str) -> None:
        """One iteration, of the student, of the critics, or of both."""
        algorithm = self.task.algorithm
        iteration, algorithm.alternation, algorithm.student_every = _TURNS[name]
        _, stepped = self.task.iteration(iteration, [self.batch])
        assert stepped, "a loss or a gradient was not finite"

    def timed(self, name: str, times: Times) -> None:
        """One iteration, until the device is done with it."""
        self._wait()
        cpu, start = time.process_time(), time.perf_counter()
        self.step(name)
        self._wait()
        times.seconds.append(time.perf_counter() - start)
        times.cpu_seconds.append(time.process_time() - cpu)

    def peak_bytes(self, name: str) -> int:
        """The most that an iteration has allocated: of the GPU's allocator, or of all tensors."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step(name)
            return torch.cuda.max_memory_allocated(self.device)
        with PeakBytes(self._held()) as memory:
            self.step(name)
        return memory.peak

    def held_bytes(self) -> int:
        """Between iterations, with gradients cleared."""
        storages = {t.data_ptr(): t.untyped_storage().nbytes() for t in self._held()}
        return sum(storages.values())

    def _held(self) -> Iterator[Tensor]:
        algorithm = self.task.algorithm
        for network in (algorithm.student, algorithm.fake, algorithm.heads, algorithm.teacher):
            yield from network.parameters()  # type: ignore[union-attr,attr-defined]
        yield from self.task.tensors().values()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


_TURNS = {"student": (1, "exclusive", 2), "critic": (0, "exclusive", 2), "joint": (0, "joint", 1)}
"""An iteration in which it is a step's turn, the alternation, and the student's k."""


def bench_step(
    recipes: Sequence[tuple[str, DistillRecipe]],
    config: dict[str, Any],
    *,
    batch: int,
    repeats: int,
    profile: Path | None = None,
    json_file: Path | None = None,
) -> None:
    """Time the steps of one recipe, or of several by turns, and print and write what was found."""
    made = [(name, recipe, Steps(recipe, config, batch)) for name, recipe in recipes]
    times = {name: {step: Times() for step in STEPS} for name, _, _ in made}
    for repeat in range(repeats + 2):
        for name, _, steps in made:
            for step in STEPS:
                # The first two are for compilation, allocation and the clocks.
                steps.timed(step, times[name][step] if repeat >= 2 else Times())
    found = {
        name: _facts(recipe, steps, times[name], count_flops(recipe, config), batch)
        for name, recipe, steps in made
    }
    if made[0][2].device.type == "cuda":
        _count_out(found, {name: steps.held_bytes() for name, _, steps in made})
    if profile:
        _trace(made[0][2], profile)
    for name, facts in found.items():
        print("\n".join(_lines(name, facts)))
    (first, *others) = found.values()
    for name, facts in list(found.items())[1:]:
        ratio = facts["joint"]["seconds"] / first["joint"]["seconds"]
        print(f"joint step of {name}: {ratio:.3f} times as long as of {recipes[0][0]}")
    if json_file:
        write_json(json_file, first if not others else found)


def _facts(
    recipe: DistillRecipe, steps: Steps, times: dict[str, Times], flops: Flops, batch: int
) -> dict[str, Any]:
    rate = _product_rate(steps.device, steps.layout.bf16)
    found: dict[str, Any] = {"device": device_name(steps.device), "batch": batch}
    for name in STEPS:
        seconds, work = statistics.median(times[name].seconds), getattr(flops, name) * batch
        found[name] = {
            "seconds": seconds,
            "cpu_seconds": statistics.median(times[name].cpu_seconds),
            "flops": work,
            "flops_per_second": work / seconds,
            "share_of_product_rate": work / seconds / rate,
            "unet_forwards": flops.in_forwards(name),
            "peak_bytes": steps.peak_bytes(name),
        }
    k = recipe.student_every
    moving = found["joint" if recipe.alternation == "joint" else "student"]["seconds"]
    found["product_flops_per_second"] = rate
    found["images_per_second"] = batch * k / (moving + (k - 1) * found["critic"]["seconds"])
    found["process_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return found


def _count_out(found: dict[str, Any], held: dict[str, int]) -> None:
    """Take what the other settings hold on the GPU out of each one's peaks."""
    for name, facts in found.items():
        for step in STEPS:
            facts[step]["peak_bytes"] -= sum(held.values()) - held[name]


def _product_rate(device: torch.device, bf16: bool) -> float:
    """FLOP/s of a product of large square matrices, in the precision that the networks run in."""
    side = _PRODUCT[device.type]
    kind = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    best = float("inf")
    for _ in range(5):
        wait()
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        wait()
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
    file.parent.mkdir(parents=True, exist_ok=True)
    found.export_chrome_trace(str(file))


def _lines(name: str, facts: dict[str, Any]) -> list[str]:
    rows = [
        f"{name}: {facts['device']}, batch {facts['batch']}",
        f"{'step':10}{'seconds':>10}{'CPU s':>10}{'forwards':>10}{'TFLOP/s':>10}{'of product':>12}"
        f"{'peak':>12}",
    ]
    for step in STEPS:
        row = facts[step]
        rows.append(
            f"{step:10}{row['seconds']:10.3f}{row['cpu_seconds']:10.3f}"
            f"{row['unet_forwards']:10.2f}{row['flops_per_second'] / 1e12:10.3f}"
            f"{row['share_of_product_rate']:12.0%}{row['peak_bytes'] / 2**30:8.2f} GiB"
        )
    return [*rows, f"{facts['images_per_second']:.2f} images/s at the recipe's ratio", ""]
