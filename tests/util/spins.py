"""What two threads of OpenMP's cost beside other work: ``python -m tests.util.spins`` prints
milliseconds of the wall and of the processor for a forward and backward of a small UNet, batch 16,
float32; with ``GOMP_SPINCOUNT=N`` or ``OMP_WAIT_POLICY=passive`` in front, as those make it."""

from __future__ import annotations

import time

import torch
from diffusers import UNet2DConditionModel

SECONDS = 3.0


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(48, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=16,
        cross_attention_dim=64,
    )
    x, c = torch.randn(16, 4, 8, 8), torch.randn(16, 77, 64)
    t = torch.randint(0, 1000, (16,))
    steps, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < SECONDS:
        unet(x, t, c).sample.square().mean().backward()
        steps += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{1e3 * wall / steps:.0f} ms, {1e3 * cpu / steps:.0f} ms of the processor")


if __name__ == "__main__":
    main()
