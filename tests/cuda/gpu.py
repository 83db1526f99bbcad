"""What tests on a GPU share; where there is none they skip, and say so."""

from __future__ import annotations

import pytest
import torch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU: torch.cuda.is_available() is False"
)
