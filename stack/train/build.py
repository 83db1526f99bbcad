"""Composition: where a recipe becomes devices, layouts and streams; its neighbours build_*.py make
networks and tasks of them. Nothing else reads the recipe."""

from __future__ import annotations

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from stack.config.schema import AnyRecipe, Data, DistillRecipe
from stack.data.batch import BatchLoader
from stack.data.cache import ShardCache
from stack.data.index import MANIFEST
from stack.data.storage import expand_variables, is_url
from stack.data.stream import ShardStream
from stack.parallel.collectives import ALONE, Ranks
from stack.parallel.mesh import Layout
from stack.train.task import Source, Task
from stack.util.errors import UserError

_LANES = 256
"""Lanes by default: the largest divisor of the batch up to this. A process that reads them all
has about as many shards open."""


@dataclass
class Job:
    """What a verb hands to the trainer."""

    task: Task
    source: Source


def device_of(name: str) -> torch.device:
    """The device a recipe names; of several GPUs the one with this rank's number on the machine."""
    if name == "auto" and not torch.cuda.is_available():
        if os.environ.get("SLURM_GPUS_ON_NODE", "0") not in ("", "0"):
            raise UserError(
                f"device: auto: the job has GPUs on {socket.gethostname()}, but torch finds none; "
                "look at its driver (in a container: at --nv), or set device=cpu"
            )
        return torch.device("cpu")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        local, present = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= present:
            raise UserError(
                f"device: {name}: no GPU for rank {local} of {socket.gethostname()}, which has "
                f"{present}; start fewer processes, give a task all GPUs of its node, or set "
                "device=cpu"
            )
        torch.cuda.set_device(local)  # What collectives and other libraries take for granted.
        return torch.device("cuda", local)
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: {name}: {reason}; device=auto takes what there is") from None


def layout_of(recipe: AnyRecipe, ranks: Ranks = ALONE, *, micro_batches: int = 1) -> Layout:
    """How a recipe's trained networks are laid over ranks."""
    parallel = recipe.parallel
    # Else cuDNN convolves float32 numbers in TF32, of whose digits it keeps three.
    torch.backends.cudnn.allow_tf32 = recipe.precision != "fp32"
    return Layout(
        ranks,
        parallel.backend,
        device_of(recipe.device),
        micro_batches=micro_batches,
        shard_size=parallel.shard_size,
        bf16=recipe.precision == "bf16",
        offload=parallel.offload,
    )


def micro_batches_of(recipe: DistillRecipe, ranks: Ranks) -> int:
    """Micro-batches of an iteration, which all ranks have alike.

    Raises:
        UserError: ranks and micro-batches do not divide the global batch.
    """
    parallel, batch = recipe.parallel, recipe.batch_size
    local, rest = divmod(batch, ranks.world_size)
    if parallel.micro_batch and not rest:
        most = parallel.micro_batch
        return next(n for n in range(1, local + 1) if local % n == 0 and local // n <= most)
    if batch % (ranks.world_size * parallel.accumulation):
        raise UserError(
            f"parallel.accumulation: {ranks.world_size} ranks of {parallel.accumulation} "
            f"micro-batches do not divide the global batch {batch}"
        )
    return parallel.accumulation


def lanes_of(data: Data, batch: int) -> int:
    """Lanes of a data section for a global batch; the ranks must divide them."""
    return data.lanes or max(n for n in range(1, _LANES + 1) if batch % n == 0)


def stream_of(
    data: Data, seed: int, *, ranks: Ranks = ALONE, batch: int | None = None
) -> ShardStream:
    """This rank's sample stream of a data section."""
    size = batch or data.global_batch
    return ShardStream(
        data.folders,
        global_batch=size,
        lanes=lanes_of(data, size),
        seed=seed,
        window=data.window,
        weights=data.weights,
        rank=ranks.rank,
        world_size=ranks.world_size,
        cache=cache_of(data),
        retries=data.retries,
    )


def check_resolution(stream: ShardStream, size: int, *, told: bool = False) -> None:
    """Refuse pictures of another size than the teacher's own, or latents of such; UserError.

    Args:
        told: refuse folders as well whose manifests tell no size: pictures of several.
    """
    for folder, manifest in stream.manifests.items():
        if manifest.resolution != size and (told or manifest.resolution):
            raise UserError(
                f"{folder.file(MANIFEST)}: resolution: {manifest.resolution}, but the teacher's is "
                f"{size}; prepare shards of that size"
            )


def cache_of(data: Data) -> ShardCache | None:
    """The node's cache of remote shards, where a data section names any."""
    if not any(is_url(expand_variables(folder)) for folder in data.folders):
        return None
    folder = data.cache or f"{tempfile.gettempdir()}/f-distill-shards-{os.getuid()}"
    return ShardCache(Path(expand_variables(folder)), int(data.cache_gb * 1e9))


def prompts_of(recipe: DistillRecipe) -> list[str]:
    """The prompts of sample grids: the recipe's, or else the first captions of its data."""
    if recipe.log.prompts or not recipe.data:
        return recipe.log.prompts
    batch = next(iter(BatchLoader(stream_of(recipe.data, recipe.seed), ("text",))))
    return list(dict.fromkeys(batch["text"]))[:10]
