"""What every training imports from others: loaded once, by the fork server of forked.py."""

# ruff: noqa: E402, F401
from stack.util.quiet import quiet_libraries

quiet_libraries()

import bitsandbytes
import deepspeed
import diffusers.models.autoencoders.autoencoder_kl
import diffusers.models.unets.unet_2d_condition
import torch.distributed.fsdp
import torchao.optim
import transformers.models.clip.modeling_clip
