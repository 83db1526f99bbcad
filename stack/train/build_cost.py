"""What a distillation's steps cost, counted on the meta device, where nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

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
from stack.train.flops import Again, FlopCounter, Flops
from stack.train.imagined import ImaginedGPU, MetaCache

_META = torch.device("meta")
_KNOWN: dict[Hashable, Any] = {}
"""What this process has counted, by all that decides it."""

T = TypeVar("T")
Tell = Callable[[str], None]
"""Told what is counted next, which may take seconds."""


def quiet(what: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Sizes:
    """Parameters.

    Args:
        network: of the teacher, which are those of the student and of the fake score. heads: of
            all. block: of the network's largest block.
        encoder: that a pass for features needs where the network is gathered block by block, and
            what is in none of them as one; reached: of the layers that it comes to.
    """

    network: int
    heads: int
    block: int
    encoder: int
    reached: int


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

    def generate(self) -> Tensor:
        """The student's sample, which costs a forward."""
        return self.algorithm.generate(self.batch, self.noise)

    def move(self, x: Tensor) -> None:
        """What a student step does with its sample."""
        algorithm = self.algorithm
        with algorithm.fake_weights.frozen(), algorithm.heads_weights.frozen():
            loss, _ = algorithm.student_loss(x, self.batch, self.noise)
            algorithm.student_weights.backward(loss)

    def criticise(self, x: Tensor) -> None:
        """What a critic step does with a sample."""
        fake, discriminator, _ = self.algorithm.critic_losses(x.detach(), self.batch, self.noise)
        self.algorithm.fake_weights.backward(fake)
        self.algorithm.heads_weights.backward(discriminator)

    @torch.no_grad()
    def look(self, x: Tensor) -> None:
        """What the sweep before several micro-batches does with a sample."""
        teacher, batch = self.networks.teacher, self.batch
        self.networks.heads(teacher.features(x, batch.positions, batch.c))

    def joint(self) -> None:
        x = self.generate()
        self.move(x)
        self.criticise(x)

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


def _once(
    recipe: DistillRecipe, subject: Subject, key: tuple[Hashable, ...], count: Callable[[], T]
) -> T:
    """What is counted, or was before. Beside the ``key`` a network's shape decides it, and what
    the recipe's steps do with a sample."""
    decides = recipe.model_dump_json(include={"gan", "guidance", "ratio"})
    known = (subject.shape, decides, *key)
    if known not in _KNOWN:
        with MetaCache():
            _KNOWN[known] = count()
    found: T = _KNOWN[known]
    return found


def count_flops(recipe: DistillRecipe, subject: Subject, tell: Tell = quiet) -> Flops:
    """FLOPs of a sample; attention included, a multiply and an add being two."""

    def count() -> Flops:
        tell("operations of a sample")
        imagined = _plain(recipe, subject)
        with FlopCounter() as forward:  # The student's, which is the teacher's copy.
            x = imagined.generate()
        rest = []
        for part in (imagined.move, imagined.criticise, imagined.look):
            with FlopCounter() as counter:
                part(x)
            rest.append(counter.total)
        move, criticise, look = rest
        one = forward.total
        return Flops(one, one + move, one + criticise, one + move + criticise, one + look)

    return _once(recipe, subject, ("flops",), count)


def count_again(recipe: DistillRecipe, subject: Subject, tell: Tell = quiet) -> Again:
    """FLOPs of a sample that the backwards compute a second time: with `full` nearly a forward of
    the network that is trained, and the encoder of the fake score where the GAN loss reads it; with
    `selective` none that count."""
    if recipe.compute.checkpointing != "full":
        return Again(0, 0)

    def turns(mode: str) -> tuple[int, int]:
        """What blocks compute in the student's turn and in the critics'."""
        imagined, counter = _plain(recipe, subject), FlopCounter()
        networks = imagined.networks
        blocks = [*networks.student.blocks(), *networks.fake.blocks()]
        for block in blocks:
            block.forward = counter.around(block.forward)  # type: ignore[method-assign]
        recompute(blocks, mode)
        x, totals = imagined.generate(), [counter.total]
        for part in (imagined.move, imagined.criticise):
            part(x)
            totals.append(counter.total)
        return totals[1] - totals[0], totals[2] - totals[1]

    def count() -> Again:
        tell("operations that are done again")
        student, critic = (
            whole - once for whole, once in zip(turns("full"), turns("none"), strict=True)
        )
        return Again(student, critic)

    return _once(recipe, subject, ("again",), count)


def count_sizes(recipe: DistillRecipe, subject: Subject) -> Sizes:
    """Parameters of the networks, and of those parts that are gathered at a time."""

    def count() -> Sizes:
        imagined = _plain(recipe, subject)
        teacher, heads = imagined.networks.teacher, imagined.networks.heads
        assert isinstance(teacher, SDDenoiser | EdmDenoiser)
        assert isinstance(heads, nn.Module)
        blocks = list(teacher.blocks())
        layers = [part for part in teacher.modules() if any(True for _ in part.parameters(False))]
        whole = size_of(teacher)
        encoder, reached = (
            whole - sum(map(size_of, unused_by_features(imagined, parts)))
            for parts in (blocks, layers)
        )
        block = max((size_of(block) for block in blocks), default=0)
        return Sizes(whole, size_of(heads), block, encoder, reached)

    return _once(recipe, subject, ("sizes",), count)


def size_of(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def unused_by_features(imagined: Imagined, parts: Iterable[nn.Module]) -> list[nn.Module]:
    """Those parts of the teacher that a pass for features does not come to."""
    teacher, batch, parts = imagined.networks.teacher, imagined.batch, list(parts)
    used: set[nn.Module] = set()
    hooks = [part.register_forward_hook(lambda part, *_: used.add(part)) for part in parts]
    with torch.no_grad():
        teacher.features(batch.x0, batch.positions, batch.c)
    for hook in hooks:
        hook.remove()
    return [part for part in parts if part not in used]


def _plain(recipe: DistillRecipe, subject: Subject, batch: int = 1) -> Imagined:
    """Networks that compute nothing twice; neither precision nor compilation changes a count, and
    sdpa on the meta device is plain products."""
    plain = _changed(recipe, attention="sdpa", compile=False, checkpointing="none")
    return Imagined(plain, subject, batch)


def _changed(recipe: DistillRecipe, **compute: Any) -> DistillRecipe:
    """In float32, and computed in another way."""
    changed = recipe.compute.model_copy(update=compute)
    return recipe.model_copy(update={"compute": changed, "precision": "fp32"})


def count_activations(
    recipe: DistillRecipe, subject: Subject, batch: int, *, grown: bool = True, tell: Tell = quiet
) -> int:
    """Bytes beyond weights at the peak of a micro-batch of ``batch`` samples, in which all networks
    move, on a CUDA GPU: with flash attention, unless the recipe's is math.

    Args:
        grown: gradients are there before, and are not counted: those of other micro-batches, or
            parts of them; else they are made, one by one, by the backward, and counted.
    """
    gpu = ImaginedGPU(bf16=recipe.precision == "bf16", flash=recipe.compute.attention != "math")
    checkpointing = recipe.compute.checkpointing

    def count() -> int:
        tell(f"activations, batch {batch}, compute.checkpointing={checkpointing}")
        return _peak(_plain(recipe, subject, batch), gpu, checkpointing, grown=grown)

    key = ("activations", gpu.bf16, gpu.flash, checkpointing, batch, grown)
    return _once(recipe, subject, key, count)


def _peak(imagined: Imagined, gpu: ImaginedGPU, checkpointing: str, *, grown: bool) -> int:
    for network in (imagined.networks.student, imagined.networks.fake):
        blocks = list(network.blocks())
        for block in blocks:
            # A backward that computes a block again is no longer inside of the mode.
            block.forward = gpu.around(block.forward)  # type: ignore[method-assign]
        recompute(blocks, checkpointing)
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
