"""DATASET_CARD.md: what a folder of shards is, where it came from, and under which terms."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from data_prep.shards import CARD
from stack.data.index import Manifest
from stack.util.files import write_atomic


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write the card of a folder that `download` has made."""
    missing = ", ".join(f"{count} {name}" for name, count in manifest.counts.items())
    text = (
        files("data_prep")
        .joinpath("card.md")
        .read_text()
        .format(
            samples=manifest.samples,
            shards=len(manifest.shards),
            resolution=manifest.resolution,
            fields=", ".join(f"`{name}`" for name in sorted(manifest.fields)),
            missing=missing or "none",
            fingerprint=manifest.fingerprint,
        )
    )
    write_atomic(folder / CARD, text)
