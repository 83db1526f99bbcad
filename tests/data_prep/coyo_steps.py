"""All of COYO's way to training data in one process: ``python tests/data_prep/coyo_steps.py ROOT
TEACHER``, by test_coyo_pipeline, which kills it. ROOT holds parquet/ and gets the rest."""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.cli import main

SIDE = 16
PARTS = 2


def steps(root: Path, teacher: Path) -> list[list[str]]:
    """The commands, in their order."""
    shards, latents, train = root / "shards", root / "latents", root / "train"
    fetch = ["download", root / "rows", shards, "--resolution", SIDE, "--samples-per-shard", 8]
    fetch += ["--allow-private", "--per-host", 8, "--attempts", 2]
    return [
        [str(word) for word in words]
        for words in (
            ["filter", root / "parquet", root / "rows"],
            *([*fetch, "--part", f"{part}/{PARTS}"] for part in range(PARTS)),
            ["merge", shards],
            ["latents", shards, latents, "--vae", teacher],
            ["captions", latents, train, "--tokenizer", teacher],
            ["verify", train],
        )
    ]


if __name__ == "__main__":
    for words in steps(Path(sys.argv[1]), Path(sys.argv[2])):
        if status := main(words):
            sys.exit(status)
