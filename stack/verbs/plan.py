"""``stack plan``: what a recipe needs of many GPUs, before an hour of one is spent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from stack.config.edm import EdmTeacher
from stack.config.schema import DistillRecipe, SDTeacher
from stack.nets.edm_blocks import EdmConfig
from stack.nets.edm_files import edm_config
from stack.nets.hub import from_hub, pipeline_folder
from stack.nets.published import EDM_NETWORKS, unet_config
from stack.train.budget import GPUS
from stack.train.build_plan import Plan, Planner
from stack.train.build_subject import Subject, edm_subject, sd_subject
from stack.util.errors import UserError
from stack.util.files import read_json, write_json

_PUBLISHED = {"stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15"}
"""Pipelines whose UNet's shape is known without their files."""
_REMEDIES = 3


def plan(
    changed: Callable[[list[str]], Any],
    *,
    gpu: str,
    gpus: int,
    node: int,
    share: float,
    json_file: Path | None = None,
) -> int:
    """Print memory by part, work, traffic and time; status 2 if the memory does not suffice.

    Args:
        changed: the recipe, read with further overrides.

    Raises:
        UserError: the recipe is no distillation of a pipeline or an EDM network, is one that a run
            would refuse, or does not fit.
    """
    recipe = changed([])
    subject = subject_of(recipe)
    planner = Planner(subject, GPUS[gpu], gpus, node, share, _tell)
    found = planner.plan(recipe)
    facts = found.facts()
    if json_file:
        write_json(json_file, facts)
    print("\n".join(_lines(gpu, found, facts, subject.label)))
    if found.fits:
        return 0
    needed = _gib(sum(facts["bytes_per_gpu"].values()))
    ways = [
        f"{name} ({_gib(sum(better.bytes_per_gpu.values()))})"
        for name, better in islice(planner.remedies(changed), _REMEDIES)
    ]
    told = f"with {'; or '.join(ways)}" if ways else "with more GPUs, or larger ones"
    raise UserError(f"does not fit: {needed} of {_gib(GPUS[gpu].memory)}; it would {told}")


def _tell(what: str) -> None:
    print(f"counting {what}", file=sys.stderr, flush=True)


def subject_of(recipe: Any, unet: str | None = None) -> Subject:
    """What a recipe distils, by its teacher's config.

    Args:
        unet: name or file of a UNet's config, in place of the pipeline's.

    Raises:
        UserError: neither a pipeline nor an EDM network, or not at hand and not known.
    """
    teacher = recipe.teacher if isinstance(recipe, DistillRecipe) else None
    if isinstance(teacher, SDTeacher):
        return sd_subject(unet_config(unet)) if unet else _pipeline(teacher)
    if not isinstance(teacher, EdmTeacher):
        raise UserError(
            "teacher: only distillations of a pipeline or an EDM network can be planned"
        )
    if unet:
        raise UserError(f"--unet: {unet}: the recipe's teacher is an EDM network")
    return edm_subject(_edm(teacher.path), teacher.levels)


def _pipeline(teacher: SDTeacher) -> Subject:
    if from_hub(teacher.path) and teacher.path in _PUBLISHED:
        return sd_subject(unet_config(_PUBLISHED[teacher.path]))
    folder = Path(pipeline_folder(teacher.path, teacher.revision))
    unet = unet_config(folder)
    return sd_subject(unet, read_json(folder / "text_encoder" / "config.json"))


def _edm(path: str) -> EdmConfig:
    """A published network is known by its folder's name before it is there."""
    folder = Path(path)
    if not folder.exists() and folder.name in EDM_NETWORKS:
        return EDM_NETWORKS[folder.name]
    return edm_config(folder)


def _lines(gpu: str, found: Plan, facts: dict[str, Any], label: str) -> list[str]:
    recipe, parts = found.recipe, facts["bytes_per_gpu"]
    samples = recipe.batch_size // facts["gpus"] // facts["micro_batches"]
    shown = [
        f"{recipe.name}: {facts['gpus']} x {gpu}, {recipe.parallel.backend}, "
        f"batch {recipe.batch_size} = {facts['gpus']} ranks x {facts['micro_batches']} x {samples}",
        "",
        "memory of a GPU",
    ]
    shown += [f"  {name:29}{_gib(size):>12}" for name, size in parts.items() if size]
    shown += [
        f"  {'all':29}{_gib(sum(parts.values())):>12}  of {_gib(facts['memory_per_gpu'])}",
        "",
        "work",
    ]
    costs = facts["unet_forwards"]
    steps = ", ".join(f"{step} {costs[step]:.2f}" for step in costs)
    rows = [
        (f"parameters of the {label}", f"{facts['parameters']['unet']:,}"),
        ("forwards of it for a sample", steps),
        ("FLOP of an iteration", f"{facts['flops_per_iteration']:.3g}"),
        (f"FLOP of {recipe.iterations:,} iterations", f"{facts['flops']:.3g}"),
        *_captions(facts),
        ("sent by a GPU an iteration", _gib(facts["bytes_communicated"])),
        ("  of that between nodes", _gib(facts["bytes_between_nodes"])),
        ("read by all a second", f"{facts['bytes_read_per_second'] / 1e6:.0f} MB"),
        ("a checkpoint", _gib(facts["checkpoint_bytes"])),
    ]
    rows += [
        (f"at {found.share:.0%} of the GPU's rate", f"{facts['images_per_second']:.0f} images/s"),
        ("an iteration", f"{facts['seconds_per_iteration']:.3f} s"),
        (f"{recipe.iterations:,} iterations", _time(facts["days"], facts["gpus"])),
        ("  without what is sent", f"{facts['gpu_hours_computing']:.0f} GPU hours"),
        (
            f"{recipe.iterations:,} student updates",
            _time(facts["days_if_student_updates"], facts["gpus"]),
        ),
    ]
    return [*shown, *(f"  {name:29}  {value}" for name, value in rows)]


def _captions(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The text encoder's line, where there is one."""
    flops, seconds = facts["text_flops_per_iteration"], facts["text_seconds_per_iteration"]
    told = f"{flops:.3g} FLOP in float32, {seconds * 1e3:.3g} ms"
    return [("captions of an iteration", told)] if flops else []


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _time(days: float, gpus: int) -> str:
    return f"{days:.2f} days, {days * 24 * gpus:.0f} GPU hours"
