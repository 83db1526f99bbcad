"""``stack train-judge``: the project's own classifier of labelled pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from stack.config.sections import Data
from stack.evaluate.classes import read_classes
from stack.evaluate.classifier import save_classifier, train_classifier
from stack.evaluate.features import hold_out
from stack.train.build import cache_of, device_of
from stack.util.errors import UserError
from stack.util.files import write_json
from stack.util.progress import progress

_HELD_OUT = 0.1


def train_judge(
    shards: str,
    out: Path,
    *,
    test: str | None,
    epochs: int,
    seed: int,
    flips: bool,
    device: str,
    json_file: Path | None,
) -> None:
    """Train, print the accuracy on held-out pictures and write the folder."""
    if out.exists():
        raise UserError(f"{out}: exists already; name another folder")
    folders = [shards] if test is None else [shards, test]
    parts = [read_classes([one], cache_of(Data(folders=[one], global_batch=1))) for one in folders]
    images = torch.cat([part.images for part in parts])
    if images.shape[-1] % 8:
        raise UserError(f"{shards}: image: {images.shape[-1]} pixels: must be a multiple of 8")
    count = len(parts[0].images)
    held_out = torch.arange(len(images)) >= count
    if test is None:
        held_out = hold_out(torch.arange(count), _HELD_OUT, seed)
    if held_out.all() or not held_out.any():
        raise UserError(f"{shards}: {count} pictures: too few to train on and to test on")
    with progress("train-judge", total=epochs) as bar:
        judge = train_classifier(
            images,
            torch.cat([part.labels for part in parts]),
            held_out=held_out,
            classes=max((part.names for part in parts), key=len),
            seed=seed,
            epochs=epochs,
            flips=flips,
            device=device_of(device),
            on_epoch=lambda epoch, loss: bar.advance(1, loss=loss),
        )
    save_classifier(judge, out)
    facts = judge.training
    print(f"{out}: {facts.accuracy:.2%} of {facts.tested} held-out pictures right, {judge.name}")
    if json_file:
        write_json(json_file, asdict(facts) | {"fingerprint": judge.fingerprint})
