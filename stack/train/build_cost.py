"""What a distillation's steps cost, counted on the meta device, where nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stack.config.schema import DistillRecipe
from stack.fdistill.algorithm import Batch, FDistill, Noise
from stack.nets.edm import EdmDenoiser
from stack.nets.recompute import recompute
from stack.nets.sd15 import SDDenoiser
from stack.parallel.adam import AdamW
from stack.parallel.local import LocalWeights
from stack.parallel.memory import PeakBytes
from stack.parallel.mesh import Layout
from stack.train.build_algorithm import algorithm_of
from stack.train.build_subject import Subject
from stack.train.imagined import ImaginedGPU

_META = torch.device("meta")


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one sample: of the teacher's forward, a student step, a critic
    step, an iteration of both, which share the student's sample, and of the sweep that comes first
    where there are several micro-batches."""

    forward: int
    student: int
    critic: int
    joint: int
    sweep: int

    def in_forwards(self, step: str) -> float:
        """What a step costs, in forwards of the teacher's network."""
        return float(getattr(self, step) / self.forward)


class Imagined:
    """A recipe's networks and algorithm on the meta device.

    Args:
        batch: samples.
    """

    def __init__(self, recipe: DistillRecipe, subject: Subject, batch: int) -> None:
        layout = Layout(device=_META)
        self.networks = subject.networks(recipe, layout)
        student, fake, _, heads = self.networks
        weights = (_weights("student", student), _weights("fake", fake), _weights("heads", heads))
        self.algorithm: FDistill = algorithm_of(recipe, layout, self.networks, weights)
        x0, c = (torch.empty(batch, *shape, device=_META) for shape in (subject.x0, subject.c))
        self.batch = Batch(torch.arange(batch, device=_META), x0, c, c)
        self.noise = Noise(0, 0, self.batch.positions)

    def forward(self) -> None:
        with torch.no_grad():
            self.networks.teacher(
                self.batch.x0, torch.zeros_like(self.batch.positions), self.batch.c
            )

    def student(self) -> Tensor:
        """A student step; its sample, for the critics."""
        algorithm = self.algorithm
        x = algorithm.generate(self.batch, self.noise)
        with algorithm.fake_weights.frozen(), algorithm.heads_weights.frozen():
            loss, _ = algorithm.student_loss(x, self.batch, self.noise)
            algorithm.student_weights.backward(loss)
        return x.detach()

    def critic(self, x: Tensor | None = None) -> None:
        """A critic step, with a sample of its own or the student step's."""
        if x is None:
            with torch.no_grad():
                x = self.algorithm.generate(self.batch, self.noise)
        fake, discriminator, _ = self.algorithm.critic_losses(x, self.batch, self.noise)
        self.algorithm.fake_weights.backward(fake)
        self.algorithm.heads_weights.backward(discriminator)

    def sweep(self) -> None:
        with torch.no_grad():
            x, t = self.algorithm.generate(self.batch, self.noise), self.batch.positions
            self.networks.heads(self.networks.teacher.features(x, t, self.batch.c))

    def joint(self) -> None:
        self.critic(self.student())

    def held(self) -> Iterator[Tensor]:
        """Weights and gradients."""
        for network in self.networks:
            assert isinstance(network, nn.Module)
            for parameter in network.parameters():
                yield parameter
                if parameter.grad is not None:
                    yield parameter.grad


def _weights(name: str, module: nn.Module) -> LocalWeights:
    """Weights that take gradients and no step."""
    optimizer = AdamW(module.parameters(), lr=1.0)
    return LocalWeights(name, module, optimizer, lr_at=lambda step: 1.0, max_norm=1.0)


def count_flops(recipe: DistillRecipe, subject: Subject) -> Flops:
    """FLOPs of a sample; attention included, a multiply and an add being two."""
    # Neither precision nor compilation changes a count; sdpa on the meta device is plain products.
    plain = _changed(recipe, attention="sdpa", compile=False, checkpointing="none")
    imagined = Imagined(plain, subject, 1)
    steps = (imagined.forward, imagined.student, imagined.critic, imagined.sweep)
    forward, student, critic, sweep = map(_count, steps)
    return Flops(forward, student, critic, student + critic - forward, sweep)


def count_again(recipe: DistillRecipe, subject: Subject, flops: Flops) -> int:
    """FLOPs of a sample that the backward of the student, or of the fake score, computes a second
    time: with `full` nearly a forward, with `selective` none that count."""
    if recipe.compute.checkpointing != "full":
        return 0
    again = _changed(recipe, attention="sdpa", compile=False)
    return _count(Imagined(again, subject, 1).student) - flops.student


def _count(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def unused_by_features(imagined: Imagined) -> list[nn.Module]:
    """Blocks of the teacher that a pass for features does not come to."""
    teacher, batch = imagined.networks.teacher, imagined.batch
    used: set[nn.Module] = set()
    assert isinstance(teacher, SDDenoiser | EdmDenoiser)
    blocks = list(teacher.blocks())
    hooks = [block.register_forward_hook(lambda part, *_: used.add(part)) for block in blocks]
    with torch.no_grad():
        teacher.features(batch.x0, batch.positions, batch.c)
    for hook in hooks:
        hook.remove()
    return [block for block in blocks if block not in used]


def _changed(recipe: DistillRecipe, **compute: Any) -> DistillRecipe:
    """In float32, and computed in another way."""
    changed = recipe.compute.model_copy(update=compute)
    return recipe.model_copy(update={"compute": changed, "precision": "fp32"})


def count_activations(
    recipe: DistillRecipe, subject: Subject, batch: int, *, grown: bool = True
) -> int:
    """Bytes beyond weights at the peak of a micro-batch of ``batch`` samples, in which all networks
    move, on a CUDA GPU: with flash attention, unless the recipe's is math.

    Args:
        grown: gradients are there before, and are not counted: those of other micro-batches, or
            parts of them; else they are made, one by one, by the backward, and counted.
    """
    keep_all = {"attention": "sdpa", "compile": False, "checkpointing": "none"}
    imagined = Imagined(_changed(recipe, **keep_all), subject, batch)
    gpu = ImaginedGPU(bf16=recipe.precision == "bf16", flash=recipe.compute.attention != "math")
    for network in (imagined.networks.student, imagined.networks.fake):
        blocks = list(network.blocks())
        for block in blocks:
            # A backward that computes a block again is no longer inside of the mode.
            block.forward = gpu.around(block.forward)  # type: ignore[method-assign]
        recompute(blocks, recipe.compute.checkpointing)
        network.forward = gpu.around(network.forward, whole=True)  # type: ignore[method-assign]
    teacher = imagined.networks.teacher
    assert isinstance(teacher, nn.Module)
    if gpu.bf16:
        teacher.to(torch.bfloat16)
    for trained in (imagined.networks.student, imagined.networks.fake, imagined.networks.heads):
        for parameter in trained.parameters() if grown else ():
            parameter.grad = torch.empty_like(parameter)
    with PeakBytes(imagined.held(), meta=True) as memory, gpu:
        start = memory.live
        imagined.joint()
    return memory.peak - start
