"""Weights that a pipeline has as pickles only, made to safetensors, which networks are read from.

torch's reader takes tensors alone out of a pickle and runs none of its code.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stack.util.errors import UserError, reason

_STEMS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("pytorch_model", "model"),
}
"""Of a component's pickles, and of the safetensors that are made of them."""
_ONE, _CUT = "{}.{}", "{}-?????-of-?????.{}"
PICKLES = {
    part: (_ONE.format(stem, "bin"), _CUT.format(stem, "bin")) for part, (stem, _) in _STEMS.items()
}
"""Patterns of a component's pickles."""
ASK = "stack fetch RECIPE teacher.allow_pickle=true makes safetensors of its pickles"


def pickles_only(folder: Path, part: str) -> list[Path]:
    """A component's pickles, in order, if it has no safetensors."""
    here, stem = folder / part, _STEMS[part][1]
    if any(any(here.glob(name.format(stem, "safetensors"))) for name in (_ONE, _CUT)):
        return []
    return sorted(file for pattern in PICKLES[part] for file in here.glob(pattern))


def convert(folder: Path) -> list[Path]:
    """Write safetensors beside the pickles of each component that has nothing else; those files.

    Raises:
        UserError: a pickle holds other things than tensors, or is damaged.
    """
    made = []
    for part, (_, stem) in _STEMS.items():
        if files := pickles_only(folder, part):
            weights = {name: value for file in files for name, value in _tensors(file).items()}
            made.append(folder / part / f"{stem}.safetensors")
            staging = made[-1].with_suffix(".partial")
            save_file(weights, staging, metadata={"format": "pt"})
            os.replace(staging, made[-1])
    return made


def load_tensors(file: Path, *, mmap: bool = False) -> Any:
    """What torch finds in a file of tensors, on the CPU; none of the file's code is run.

    Args:
        mmap: read what is used alone, when it is.

    Raises:
        OSError: the disk's.
        pickle.UnpicklingError: other things than tensors, or damage of whatever kind.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    # The reader meets bytes of anyone's, and its errors are of any kind.
    except Exception as error:
        raise pickle.UnpicklingError(reason(error)) from None


def _tensors(file: Path) -> dict[str, Tensor]:
    """Each on memory of its own, as safetensors wants them."""
    try:
        found = load_tensors(file)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: not weights alone, or damaged ({reason(error)})") from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"{file}: not weights alone")
    return {name: value.clone().contiguous() for name, value in found.items()}
