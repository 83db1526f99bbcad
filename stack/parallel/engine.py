"""DeepSpeed as zero.py uses it: what it is told, and its files.

It is slow to import and for Linux only, so it is imported inside functions.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from stack.parallel.adam import Adam
from stack.util.files import disk_errors

_BUCKET = 50_000_000
"""Elements communicated at once: 200 MB in float32."""


def deepspeed() -> Any:
    """DeepSpeed, which is to keep quiet and to leave collectives to torch.distributed."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # It insists; no launcher means one process.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed as library

    library.utils.logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)
    # On CPUs it would compile collectives of its own, with g++ and ninja.
    library.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return library


def build(module: nn.Module, optimizer: Adam, config: dict[str, Any]) -> Any:
    """The engine of a network; torch.distributed has been initialized."""
    library = deepspeed()
    from deepspeed.runtime.engine import ZERO_OPTIMIZATION, DeepSpeedEngine

    class Engine(DeepSpeedEngine):
        def _do_optimizer_sanity_check(self, basic_optimizer: Optimizer) -> str:
            """ZeRO in every case. Stage 1 with bfloat16 would be another implementation, which
            all-reduces whole gradients."""
            return ZERO_OPTIMIZATION

    library.init_distributed(dist_init_required=False)
    return Engine(
        args=None,
        model=module,
        optimizer=optimizer,
        config=config,
        config_class=library.DeepSpeedConfig(config),
    )


def config(stage: int, size: int, *, bf16: bool, offload: bool) -> dict[str, Any]:
    """The engine's settings for a network of ``size`` parameters."""
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        # Else it all-reduces, which is twice the bytes.
        "use_multi_rank_bucket_allreduce": False,
        "reduce_bucket_size": min(size, _BUCKET),
        "allgather_bucket_size": 2 * _BUCKET,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        # Clipping is not the engine's; not said, it would be to 1.
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": bf16, "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": None,
    }


def recorder() -> Any:
    """A checkpoint engine that keeps in ``saved`` what it is told to write."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class Recorder(TorchCheckpointEngine):
        def __init__(self) -> None:
            super().__init__()
            self.saved: dict[str, Any] = {}

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            """Nothing is written."""

        def save(self, state_dict: Any, path: str) -> None:
            self.saved[path] = state_dict

    return Recorder()


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter in a network's folder of a checkpoint."""
    deepspeed()  # Its classes are in the file.
    file = min(folder.glob("*model_states.pt"))
    groups = torch.load(file, map_location="cpu", weights_only=False, mmap=True)["param_shapes"]
    return {name: tuple(shape) for group in groups for name, shape in group.items()}


def convert(folder: Path, to: Path) -> None:
    """Rewrite a checkpoint parameter by parameter, so that any number of ranks can load it."""
    from deepspeed.checkpoint.ds_to_universal import main

    to.mkdir(parents=True)
    with silence(), disk_errors(to):
        main(
            Namespace(
                input_folder=str(folder),
                output_folder=str(to),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What DeepSpeed prints is not for our users."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield
