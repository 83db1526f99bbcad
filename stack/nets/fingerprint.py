"""What tells one network from another: hashes of weights and of noise levels."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from stack.diffusion.schedule import Schedule


def weights_fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's weights and buffers with their names, in hex."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def schedule_fingerprint(schedule: Schedule) -> str:
    """SHA-256 of the noise scale at every time, in hex."""
    return hashlib.sha256(schedule.sigma(torch.arange(schedule.steps)).numpy().data).hexdigest()
