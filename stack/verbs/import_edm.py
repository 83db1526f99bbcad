"""``stack import-edm``: an EDM teacher's folder from NVIDIA's pickle."""

from __future__ import annotations

from pathlib import Path

from stack.nets.edm_files import edm_config, import_edm


def import_network(file: Path, out: Path) -> None:
    """Write the folder and say what is in it."""
    config = edm_config(import_edm(file, out))
    size, classes = config.img_resolution, config.label_dim or "no"
    print(f"{out}: {config.architecture}, {size}x{size} pixels, {classes} classes")
