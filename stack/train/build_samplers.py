"""Composition of what makes pictures, from a network's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from stack.diffusion.karras import KarrasSchedule
from stack.nets.edm import EdmDenoiser, EdmNetwork
from stack.nets.edm_files import WEIGHTS, edm_config, edm_steps, load_edm
from stack.nets.hub import from_hub, pipeline_folder
from stack.nets.sd15 import SDDenoiser, load_schedule, load_unet
from stack.nets.text import load_text
from stack.nets.vae import load_vae
from stack.sample.class_to_image import HEUN_STEPS, ClassToImage
from stack.sample.export import ONE_STEP
from stack.sample.generate import Sampler, TextToImage
from stack.util.errors import UserError
from stack.util.files import read_json

Part = TypeVar("Part", bound=nn.Module)

_PIPELINE_STEPS = 25
"""Of a teacher that is given as a folder, unless the command line says another number."""


def pipeline_sampler(
    folder: str | Path,
    unet: UNet2DConditionModel | None = None,
    *,
    device: torch.device,
    bf16: bool,
    steps: int = 1,
    guidance: float = 1.0,
) -> TextToImage:
    """A diffusers pipeline's folder, in evaluation mode.

    Args:
        unet: in place of the folder's.

    Raises:
        UserError: a part is missing or of an unknown kind.
    """
    schedule, parameterization = load_schedule(folder)
    denoiser = SDDenoiser(unet or load_unet(folder), schedule, parameterization, bf16=bf16)
    return TextToImage(
        _settled(denoiser, device),
        _settled(load_text(folder), device),
        _settled(load_vae(folder, bf16=bf16), device),
        device,
        steps,
        guidance,
    )


def edm_sampler(
    folder: str | Path,
    network: EdmNetwork | None = None,
    *,
    levels: int = 1000,
    device: torch.device,
    bf16: bool,
    steps: int = 1,
) -> ClassToImage:
    """An EDM network's folder, in evaluation mode.

    Args:
        network: in place of the folder's. levels: times of the grid, whose last is a student's.

    Raises:
        UserError: a file is missing, or the two do not fit each other.
    """
    network = network or load_edm(folder, augmentation=False)
    denoiser = EdmDenoiser(network, KarrasSchedule(levels), bf16=bf16)
    return ClassToImage(_settled(denoiser, device), device, steps)


def folder_sampler(path: str, revision: str | None, *, device: torch.device, bf16: bool) -> Sampler:
    """Whatever a folder or hub id holds, in as many steps as it is made for: what stack export
    wrote in one, any other pipeline in 25, any other EDM network in as many as EDM's authors took
    for its architecture.

    Raises:
        UserError: neither a pipeline nor an EDM network, or one of their files is garbled.
    """
    if (Path(path) / WEIGHTS).is_file():
        made_for = edm_steps(path) or HEUN_STEPS[edm_config(path).architecture]
        return edm_sampler(path, device=device, bf16=bf16, steps=made_for)
    if not (Path(path) / "model_index.json").is_file() and not (from_hub(path) and revision):
        hub = "; a pipeline of the hub needs --revision COMMIT" if from_hub(path) else ""
        raise UserError(
            f"{path}: neither a run (recipe.yaml), a pipeline (model_index.json), nor an EDM "
            f"network's folder{hub}"
        )
    folder = pipeline_folder(path, revision)
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    student = config.get("_class_name") == "DDIMScheduler" and ONE_STEP.items() <= config.items()
    steps = 1 if student else _PIPELINE_STEPS
    return pipeline_sampler(folder, device=device, bf16=bf16, steps=steps)


def _settled(part: Part, device: torch.device) -> Part:
    return part.to(device).requires_grad_(False).eval()
