"""What every process imports from others: loaded once, by the fork server of forked.py. DeepSpeed
is not among it: how a process ends goes by whether it has it (stack/util/exits.py)."""

# ruff: noqa: E402, F401
import gc

from stack.util.quiet import quiet_libraries

quiet_libraries()

import diffusers.models.autoencoders.autoencoder_kl
import diffusers.models.unets.unet_2d_condition
import fsspec
import pydantic
import rich.live
import rich.progress
import rich.table
import torch.distributed.fsdp
import torch.utils.tensorboard
import transformers.models.clip.modeling_clip
import transformers.models.clip.tokenization_clip

# No fork's collector looks at all this again: DeepSpeed calls it for each network that it wraps.
gc.freeze()
