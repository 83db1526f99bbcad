"""What every process imports from others: loaded once, by the fork server of forked.py. DeepSpeed
is not among it: how a process ends goes by whether it has it (stack/util/exits.py)."""

# ruff: noqa: E402, F401
from stack.util.quiet import quiet_libraries

quiet_libraries()

import diffusers.models.autoencoders.autoencoder_kl
import diffusers.models.unets.unet_2d_condition
import torch.distributed.fsdp
import transformers.models.clip.modeling_clip
