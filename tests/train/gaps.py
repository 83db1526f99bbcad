"""How near the distillation's gradient in bfloat16 is to that in float32, the smaller the gap
between the scores: ``python -m tests.train.gaps``."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.train.test_numerics import SAMPLES, distillation_gradient

APART = (0.01, 0.03, 0.1, 0.3)


def main() -> None:
    torch.set_num_threads(1)
    print(f"batch of {SAMPLES}; fake score apart from the teacher by, cosine, distance")
    for apart in APART:
        full, half = (distillation_gradient(name, apart) for name in ("fp32", "bf16"))
        cosine = F.cosine_similarity(full, half, dim=0).item()
        print(f"{apart:.0%}  {cosine:.6f}  {(half - full).norm() / full.norm():.4f}", flush=True)


if __name__ == "__main__":
    main()
